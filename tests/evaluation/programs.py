"""Running the answering programs on a tiny pair, and comparing what they wrote."""

from __future__ import annotations

import json
from pathlib import Path

NEW_TOKENS = 12
VARYING = {"answer_id", "tstamp", "wall_time"}


def arguments(pair: tuple[Path, Path], questions: Path, *more: str) -> list[str]:
    """A short run of a pair on the CPU, with the trees of the head's folder."""
    return [
        *("--base-model-path", str(pair[0]), "--ea-model-path", str(pair[1]), "--device", "cpu"),
        *(
            "--question-file",
            str(questions),
            "--model-id",
            "tiny",
            "--folder_id",
            "f",
            "--max-new-token",
            str(NEW_TOKENS),
        ),
        *more,
    ]


def two_questions(folder: Path) -> Path:
    """A file of two questions of two turns."""
    file = folder / "question.jsonl"
    file.write_text("".join(json.dumps({"question_id": n, "turns": ["Tell.", "More."]}) + "\n" for n in (1, 2)))
    return file


def lines(file: Path) -> list[dict]:
    """What the lines of a file hold."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def without_times(file: Path) -> list[object]:
    """What a file holds, but for what differs between any two runs: times, ids, versions and arguments."""

    def scrubbed(value: object, key: str = "") -> object:
        if key in VARYING or key.endswith("_time"):
            return None
        if isinstance(value, dict):
            return [(name, scrubbed(inner, name)) for name, inner in value.items()]
        if key == "choices" and isinstance(value, list):
            return [scrubbed(choice) for choice in value]
        return value

    if file.suffix == ".json":
        return [scrubbed(json.loads(file.read_text())["settings"])]
    return [scrubbed(line) for line in lines(file)]
