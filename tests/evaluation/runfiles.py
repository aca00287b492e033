"""Run files written by hand: a question is a list of turns, a turn a list of rounds (accepted, draft length)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Turn:
    """One turn; a round takes 1 s of the target's, 0.25 s of verification, 0.5 s of commit and draft."""

    rounds: Sequence[tuple[int, int]]
    seconds: float
    text: str = "x"
    token_ends: Sequence[int] | None = None
    draft_seconds: float = 0.2
    prefill_seconds: float = 0.6

    @property
    def new_tokens(self) -> int:
        return 1 + sum(accepted + 1 for accepted, _ in self.rounds)


def answer_line(question_id: int | str, choices: Sequence[Sequence[Turn]]) -> str:
    record = {
        "question_id": question_id,
        "answer_id": "a",
        "model_id": "tiny",
        "choices": [
            {
                "index": index,
                "turns": [turn.text for turn in turns],
                "idxs": [len(turn.rounds) - 1 for turn in turns],
                "new_tokens": [turn.new_tokens for turn in turns],
                "wall_time": [turn.seconds for turn in turns],
            }
            for index, turns in enumerate(choices)
        ],
        "tstamp": 0.0,
    }
    return json.dumps(record) + "\n"


def info_line(
    question_id: int | str | None, turns: Sequence[Turn], choice: int = 0, category: str | None = None
) -> str:
    record: dict[str, object] = {} if question_id is None else {"question_id": question_id, "choice_index": choice}
    if category is not None:
        record["category"] = category
    record |= {
        "tokenizer_time": [0.0 for _ in turns],
        "tokenizer_decode_time": [0.0 for _ in turns],
        "generate_time": [turn.seconds for turn in turns],
        "processor_time": [0.0 for _ in turns],
        "kv_time": [0.0 for _ in turns],
        "reset_tree_time": [turn.prefill_seconds for turn in turns],
        "tree_time": [[1.0 for _ in turn.rounds] for turn in turns],
        "eval_time": [[0.25 for _ in turn.rounds] for turn in turns],
        "update_time": [[0.5 for _ in turn.rounds] for turn in turns],
        "accept_length": [[accepted for accepted, _ in turn.rounds] for turn in turns],
        "draft_length": [[drafted for _, drafted in turn.rounds] for turn in turns],
    }
    if question_id is not None:
        record["draft_time"] = [[turn.draft_seconds for _ in turn.rounds] for turn in turns]
    if all(turn.token_ends is not None for turn in turns):
        record["token_ends"] = [turn.token_ends for turn in turns]
    return json.dumps(record) + "\n"


def write_run(
    answers: Path, questions: dict[int, list[Turn]], categories: dict[int, str] | None = None, ids: bool = True
) -> Path:
    """Write answers and info of questions with one choice; without ``ids`` as the published code does."""
    answers.parent.mkdir(parents=True, exist_ok=True)
    categories = categories or {}
    answers.write_text("".join(answer_line(question_id, [turns]) for question_id, turns in questions.items()))
    answers.with_name(answers.stem + "_info.jsonl").write_text(
        "".join(
            info_line(question_id if ids else None, turns, category=categories.get(question_id))
            for question_id, turns in questions.items()
        )
    )
    return answers


def record(answers: Path, settings: dict[str, object], **environment: object) -> Path:
    """Write what a run was made with beside its answers."""
    file = answers.with_name(answers.stem + "_run.json")
    file.write_text(json.dumps({"settings": settings, "environment": environment}))
    return answers
