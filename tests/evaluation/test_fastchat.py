"""FastChat's own reader of answers, with what it imports, on the files of a tiny pair."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from eagle.evaluation import sweep
from tests.evaluation.programs import arguments, lines
from tests.tiny import make_chat_pair

READER = """
import json, sys
from fastchat.llm_judge.common import load_model_answers

print(json.dumps(load_model_answers(sys.argv[1])))
"""


@pytest.fixture
def judge_packages(tmp_path: Path) -> Path:
    """A folder with the packages of the extra ``judge``, beside those of this environment."""
    folder = tmp_path / "judge"
    required = map(Requirement, importlib.metadata.requires("eagle-hsd") or [])
    wanted = [
        f"{each.name}{each.specifier}" for each in required if each.marker and each.marker.evaluate({"extra": "judge"})
    ]
    assert wanted
    # Nothing is compiled but what is imported.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(folder)]
    subprocess.run([*pip, *wanted], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.network
def test_fastchat_reads_a_folder_of_answers(
    tmp_path: Path, judge_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    questions = tmp_path / "question.jsonl"
    questions.write_text(
        "".join(json.dumps({"question_id": number, "turns": ["Tell.", "More."]}) + "\n" for number in (81, 82))
    )
    grid = ["--method", "baseline", "eagle3", "hsd", "--temperature", "1.0"]
    assert sweep.main(arguments(make_chat_pair(tmp_path), questions, *grid)) == 0
    folder = tmp_path / "mt_bench" / "f"

    done = subprocess.run(
        [sys.executable, "-c", READER, folder],
        env=os.environ | {"PYTHONPATH": str(judge_packages), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    read = json.loads(done.stdout.splitlines()[-1])

    # Every file of JSON lines is one model to FastChat, those with the timings too.
    written = {file.stem: file for file in folder.glob("*.jsonl")}
    assert read.keys() == written.keys()
    answers = [name for name in written if not name.endswith("_info")]
    assert len(answers) == 3
    for name in answers:
        assert read[name].keys() == {"81", "82"}
        assert list(read[name].values()) == lines(written[name])
        assert all(len(line["choices"][0]["turns"]) == 2 for line in read[name].values())
