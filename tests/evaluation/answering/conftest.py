from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import make_chat_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_chat_pair(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    lines = [
        {"question_id": 81 + number, "category": "writing", "turns": [f"Tell me of {number}.", "And then?"]}
        for number in range(6)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
