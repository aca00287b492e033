"""One self-contained page of a report: its tables, its pictures, and sample answers shaded by how their tokens came."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from eagle.data.questions import Question
from eagle.evaluation.reading.plots import INK, draw, write
from eagle.evaluation.reading.report import Comparison, Member, notes, tables, title
from eagle.evaluation.reading.sample import Piece, Sample, find_sample
from eagle.evaluation.reading.style import STYLE
from eagle.evaluation.reading.tables import Table, summary_table

CAPTIONS = {
    "accepted": "Accepted draft tokens: how many rounds accept n or more. The values from 1 on add up to the mean.",
    "depth": "Acceptance by depth: of the rounds whose tree is so deep, how many accept a token there.",
    "accepted_by_temperature": "Accepted draft tokens a round, with 95 % intervals.",
    "time": "Where the time of a new token goes.",
    "speed_by_temperature": "New tokens a second, with 95 % intervals.",
}
ALL = "All questions"
# From this depth on tokens are shaded alike.
DEEPEST = 6


def write_page(
    file: Path,
    members: Sequence[Member],
    comparison: Comparison | None = None,
    questions: Mapping[int | str, Question] | None = None,
) -> list[Path]:
    """Write the page.

    Args:
        file: to write; its folder is made if it is not there.
        members: the runs.
        comparison: of two of them.
        questions: whose text is shown above the sample answers, as far as known.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(members, comparison, questions or {}), encoding="utf-8")
    return [file]


def page(members: Sequence[Member], comparison: Comparison | None, questions: Mapping[int | str, Question]) -> str:
    """The page as HTML: no scripts, nothing from elsewhere."""
    heading = f"Speculative decoding: {title(members)}"
    body = [f"<h1>{escape(heading)}</h1>"]
    summary, *others = tables(members, ("depth", "time"), comparison)
    body += [_table(replace(summary, title=ALL)), *_by_category(members), *map(_table, others)]
    body += [f'<p class="note">{escape(note)}</p>' for note in notes(members)]
    body += ["<h2>Pictures</h2>", '<div class="pictures">']
    body += [_picture(name, svg) for name, svg in _pictures(members).items()]
    body += ["</div>", *_samples(members, questions)]
    return whole_page(heading, body)


def whole_page(heading: str, body: Sequence[str], style: str = "") -> str:
    """A page of a report: no scripts, nothing from elsewhere.

    Args:
        heading: its title.
        body: elements.
        style: rules beside ``STYLE``.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(heading)}</title>",
            f"<style>\n{STYLE}{style}</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>\n",
        ]
    )


def _by_category(members: Sequence[Member]) -> list[str]:
    """A table for each run whose questions are of several categories, folded up."""
    several = {member.label: by for member in members if len(by := member.by_category()) > 1}
    if not several:
        return []
    folded = [_table(summary_table(label, by, first="category"), "h3") for label, by in several.items()]
    return ["<details><summary>By category</summary>", *folded, "</details>"]


def _table(table: Table, level: str = "h2") -> str:
    return table_html(table, table.title, level)


def table_html(table: Table, heading: str, level: str = "h2") -> str:
    """A table under a heading."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = [
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}</tr>'
        for row in table.rows
    ]
    return "\n".join(
        [
            f"<{level}>{escape(heading)}</{level}>",
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>',
            "<tbody>",
            *rows,
            "</tbody></table></div>",
            *(f'<p class="note">{escape(note)}</p>' for note in table.notes),
        ]
    )


def _cell(text: str) -> str:
    """A figure; its interval in smaller letters."""
    value, bracket, interval = text.partition(" (")
    small = f' <span class="interval">({escape(interval)}</span>' if bracket else ""
    return f"{escape(value)}{small}"


# ---------------------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------------------


def _pictures(members: Sequence[Member]) -> dict[str, str]:
    """The pictures as SVG elements, in the page's own colour of text."""
    drawn = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, figure in draw(members).items():
            file = Path(folder) / f"{name}.svg"
            write(figure, file, "svg", transparent=True)
            drawn[name] = _inline(file.read_text(encoding="utf-8"), CAPTIONS[name])
    return drawn


def _inline(svg: str, label: str) -> str:
    """An SVG file as an element of a page: without its prolog, and without names that only its own file needs."""
    element = svg[svg.index("<svg") :].strip()
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    element = element.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
    return element.replace(INK, "currentColor")


def _picture(name: str, svg: str) -> str:
    return f'<figure id="{name}">\n{svg}\n<figcaption>{escape(CAPTIONS[name])}</figcaption>\n</figure>'


# ---------------------------------------------------------------------------------------------------------------------
# Sample answers
# ---------------------------------------------------------------------------------------------------------------------


def _samples(members: Sequence[Member], questions: Mapping[int | str, Question]) -> list[str]:
    """The same question as each drafting run answered it; nothing where no run tells where its tokens end."""
    samples: dict[str, Sample] = {}
    for member in members:
        if member.summary.depths:
            wanted = next(iter(samples.values())).question_id if samples else None
            found = find_sample(member.run.files.answers, wanted)
            if found is not None:
                samples[member.label] = found
    if not samples:
        return []
    question_id = next(iter(samples.values())).question_id
    legend = "".join(
        f'<span class="d{depth}">depth {depth}{" or more" if depth == DEEPEST else ""}</span> '
        for depth in range(1, DEEPEST + 1)
    )
    shown = [
        f"<h2>How the answer to question {escape(str(question_id))} came about</h2>",
        f'<p class="legend">{legend}<span class="own">the target&#8217;s own</span></p>',
    ]
    for place, (label, sample) in enumerate(samples.items()):
        shown.append(f"<details{' open' if place == 0 else ''}><summary>{escape(label)}</summary>")
        asked = questions[question_id].turns if question_id in questions else ()
        for turn, said in enumerate(sample.turns):
            if turn < len(asked):
                shown.append(f'<p class="asked">{escape(asked[turn])}</p>')
            shown.append(f'<p class="answer">{"".join(map(_token, said))}</p>')
            shown.append(f'<p class="note">{_counted(said)}</p>')
        shown.append("</details>")
    return shown


def _token(piece: Piece) -> str:
    if not piece.text:
        return ""
    if piece.depth is None:
        kind, how = "own", "the target's own"
    else:
        kind, how = f"d{min(piece.depth, DEEPEST)}", f"drafted at depth {piece.depth}"
    where = f"round {piece.round}" if piece.round else "prefill"
    return f'<span class="{kind}" title="{escape(f"{how}, {where}")}">{escape(piece.text)}</span>'


def _counted(said: Sequence[Piece]) -> str:
    drafted = sum(piece.depth is not None for piece in said)
    return f"{len(said)} tokens in {max((piece.round for piece in said), default=0)} rounds, {drafted} of them drafted"
