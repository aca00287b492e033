"""A page of speed-ups: a bar for each run and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from eagle.evaluation.reading.page import table_html, whole_page
from eagle.evaluation.reading.spec_bench import Speed, speed_table

BARS = """\
.bars { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 0.75rem; align-items: center; }
.bars span { font-size: 0.87rem; overflow-wrap: anywhere; }
.bars div { background: rgba(var(--drafted), 0.42); border-radius: 3px; padding: 0 0.4rem; white-space: nowrap; }
.bars div.none { background: none; }
"""


def write_speed_page(file: Path, baseline: str, runs: Mapping[str, Sequence[Speed]]) -> None:
    """Write the page.

    Args:
        file: to write; its folder is made if it is not there.
        baseline: its name.
        runs: the speeds of each, by name.

    Raises:
        OSError: it cannot be written.
    """
    heading = f"Speed-up over {baseline}"
    longest = max((each.speed_up or 0.0 for found in runs.values() for each in found), default=0.0)
    tasks = list(dict.fromkeys(each.task for found in runs.values() for each in found))
    body = [f"<h1>{escape(heading)}</h1>"]
    for task in tasks:
        body += [f"<h2>{escape(task)}</h2>", '<div class="bars">']
        for name, found in runs.items():
            bar = next((_bar(each, longest) for each in found if each.task == task), '<div class="none">-</div>')
            body += [f"<span>{escape(name)}</span>", bar]
        body.append("</div>")
    body += [table_html(speed_table(found), name) for name, found in runs.items()]
    body.append(
        '<p class="note">Tokens/s are means over questions, as in Spec-Bench; mean accepted: tokens a round, the '
        "target's own included.</p>"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(whole_page(heading, body, BARS), encoding="utf-8")


def _bar(speed: Speed, longest: float) -> str:
    if speed.speed_up is None:
        return '<div class="none">-</div>'
    return f'<div style="width: {100 * speed.speed_up / longest:.1f}%">{speed.speed_up:.2f}x</div>'
