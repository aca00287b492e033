"""The mark (U+FEFF) that some editors put before a text is no part of any file that is read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from eagle.decoding.stored_trees import StoredTrees, store
from eagle.drafters.eagle3.checkpoint import read_config as read_head_config
from eagle.evaluation.answering.records import RunFiles
from eagle.evaluation.reading.runs import read_run
from eagle.identity import BASE
from eagle.train.answers import Answer, read_answers
from eagle.train.options import read_config
from eagle.train.vocab import VocabSettings
from eagle.tree.shape import DETERMINISTIC, TreeShape
from tests.evaluation.runfiles import Turn, record, write_run


def mark(file: Path) -> Path:
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    return file


def test_a_run_is_read_and_resumed(tmp_path: Path) -> None:
    settings = {BASE: {}, "temperature": 0.5}
    files = RunFiles.beside(record(write_run(tmp_path / "a.jsonl", {1: [Turn([(1, 2)], 1.0)]}), settings))
    for file in (files.answers, files.info, files.run):
        mark(file)
    run = read_run(files.answers)
    assert (run.questions, run.about.temperature, run.skipped) == ((1,), 0.5, 0)
    assert files.begin(settings, {}, 1) == {1}
    assert len(files.answers.read_text().splitlines()) == 1


def test_what_lies_beside_a_head_is_read(tmp_path: Path) -> None:
    shape = TreeShape(5, 2, 2)
    mark(store(tmp_path, "cpu", {DETERMINISTIC: {1.0: shape}}))
    (tmp_path / "config.json").write_text('{"draft_vocab_size": 3}')
    mark(tmp_path / "config.json")
    assert StoredTrees.read(tmp_path, "cpu").at(1.0, DETERMINISTIC) == shape
    assert read_head_config(tmp_path) == {"draft_vocab_size": 3}


def test_settings_and_answers_of_a_training_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("vocab:\n  size: 5\n")
    assert read_config(mark(tmp_path / "c.yaml"), {"vocab": VocabSettings}) == {"vocab": {"size": 5}}
    answer = Answer("k@1", [1], [2], 1.0, True)
    (tmp_path / "answers-00000.jsonl").write_text(json.dumps(asdict(answer)) + "\n")
    mark(tmp_path / "answers-00000.jsonl")
    assert read_answers(tmp_path) == [answer]
