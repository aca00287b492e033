"""``--min-p``, ``--repetition-penalty`` and ``--stop``: what they do to answers, and to the record of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.evaluation import gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat
from tests.evaluation.programs import two_questions
from tests.tiny import make_chat_pair


def answers(file: Path) -> list[str]:
    return [turn for line in file.read_text().splitlines() for turn in json.loads(line)["choices"][0]["turns"]]


def test_they_shape_answers_and_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = make_chat_pair(tmp_path)
    common = ["--base-model-path", str(base), "--question-file", str(two_questions(tmp_path)), "--device", "cpu"]
    common += ["--ea-model-path", str(head), "--temperature", "0", "--dtype", "float64"]
    file = tmp_path / "a.jsonl"
    ours = [*common, "--answer-file", str(file), "--max-new-token", "40"]
    assert gen_ea_answer_llama3chat.main(ours) == 0
    plain = answers(file)
    settings = json.loads((tmp_path / "a_run.json").read_text())["settings"]
    assert not {"min_p", "repetition_penalty", "stop"} & set(settings)
    # A run that began without them goes on; with them it is another one.
    assert gen_ea_answer_llama3chat.main(ours) == 0
    stop = plain[0][5:7]
    assert stop.strip()
    how = ["--stop", stop, "nowhere", "--repetition-penalty", "1.0", "--min-p", "0.1"]
    assert gen_ea_answer_llama3chat.main([*ours, *how]) == 2
    assert "min_p" in capsys.readouterr().err
    for name, program in (("ea", gen_ea_answer_llama3chat), ("base", gen_baseline_answer_llama3chat)):
        file = tmp_path / f"{name}.jsonl"
        arguments = [*common, *how, "--answer-file", str(file), "--max-new-token", "40"]
        assert program.main(arguments) == 0
        cut = answers(file)
        assert cut[0] == plain[0][: plain[0].find(stop)].strip()
        assert not any(stop in text for text in cut)
        settings = json.loads((tmp_path / f"{name}_run.json").read_text())["settings"]
        assert (settings["stop"], settings["repetition_penalty"], settings["min_p"]) == ([stop, "nowhere"], 1.0, 0.1)
        assert program.main(arguments) == 0
    assert gen_ea_answer_llama3chat.main([*ours, "--min-p", "2"]) == 2
    assert "min_p must lie in [0, 1], not 2.0" in capsys.readouterr().err
