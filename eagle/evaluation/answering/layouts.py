"""How a line of answers is laid out: as FastChat and EAGLE have it, or as Spec-Bench does.

Spec-Bench (Xia et al. 2024) names the category, counts ``decoding_steps`` where EAGLE has ``idxs``, and lists how many
tokens each round emitted, the target's own included, over all turns: ``accept_lengths``, all 1 in its baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FASTCHAT, SPEC_BENCH = LAYOUTS = ("fastchat", "spec_bench")


def as_spec_bench(answer: dict[str, Any], infos: Sequence[dict[str, Any]], category: str | None) -> dict[str, Any]:
    """A line of answers in Spec-Bench's layout.

    Args:
        answer: in FastChat's.
        infos: of each choice.
        category: of the question.
    """
    choices = []
    for choice, info in zip(answer["choices"], infos, strict=True):
        kept = {key: value for key, value in choice.items() if key != "idxs"}
        emitted = [accepted + 1 for turn in info["accept_length"] for accepted in turn]
        choices.append({**kept, "decoding_steps": [place + 1 for place in choice["idxs"]], "accept_lengths": emitted})
    question_id, *others = answer.items()
    return dict([question_id, ("category", category), *others]) | {"choices": choices}
