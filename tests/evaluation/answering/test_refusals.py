"""What the answering programs refuse, and what they cannot answer: one line, and nothing that was done is lost."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

from eagle.evaluation import gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat, stats, sweep
from eagle.evaluation.answering import cli
from eagle.evaluation.answering.cells import cell_of
from tests.evaluation.answering.program import arguments, failing
from tests.evaluation.programs import lines
from tests.tiny import CHAT_TEMPLATE, head_files, make_chat_pair, write_head


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--temperature", "-1"], "temperature must be"),
        (["--temperature", "nan"], "temperature must be"),
        (["--top_p", "1.5"], "top_p must lie in"),
        (["--sample-top-k", "-2"], "top_k must be"),
        (["--max-new-token", "0"], "--max-new-token must be"),
        (["--num-choices", "0"], "--num-choices must be"),
        (["--total-token", "1"], "total_token must be"),
        (["--tree", "bush"], "tree must be one of"),
        (["--verifier", "blockwise"], "needs tree='chain'"),
        (["--hsd", "--verifier", "hsd_published"], "as published"),
        (["--rho", "0.5"], "--rho is for hybrid trees"),
        (["--tree", "chain", "--least-expanded", "0.2"], "not for chains"),
        (["--tree", "chain", "--least", "0"], "not for chains"),
        (["--least-expanded", "1.5"], "least_expanded must lie in (0, 1]"),
        (["--hsd", "--rho", "1.5"], "rho must lie in"),
        (["--hsd", "--samples", "9"], "samples must be"),
        (["--question-begin", "6"], "no questions in the range"),
        (["--question-file", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--base-model-path", "no/such/base"], "no/such/base"),
        (["--ea-model-path", "no/such/head"], "no/such/head"),
        (["--device", "tpu"], "--device must be"),
        (["--device", "cuda"], "no CUDA"),
        (["--load-in-8bit"], "needs a CUDA GPU"),
        (["--num-gpus-total", "3", "--num-gpus-per-model", "2"], "multiple"),
        (["--answer-file", "question.jsonl/a.jsonl"], "cannot write"),
        (["--bench-name", "gsm9k", "--question-file", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments_are_one_line(
    pair: tuple[Path, Path],
    questions: Path,
    more: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert complaint in failing(capsys, arguments(pair, questions, *more))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_sharding_without_ray_says_so(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "pip install ray" in failing(capsys, arguments(pair, questions, "--num-gpus-total", "2"))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not valid JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"turns": ["x"]}', "line 2: 'question_id'"),
        ('{"question_id": 7}', "line 2: 'turns'"),
        ('{"question_id": 7, "turns": []}', "line 2: 'turns'"),
        ('{"question_id": 7, "turns": ["  "]}', "line 2: every turn"),
        ('{"question_id": 81, "turns": ["x"]}', "occurs twice"),
    ],
)
def test_malformed_questions_name_file_and_line(
    pair: tuple[Path, Path], questions: Path, line: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = questions.read_text().splitlines()[0]
    questions.write_text(f"{first}\n{line}\n")
    message = failing(capsys, arguments(pair, questions))
    assert complaint in message
    assert "question.jsonl" in message


def test_files_of_other_settings_are_refused(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--answer-file", "a.jsonl", "--question-end", "1"]
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, *fixed)) == 0
    before = {name: Path(name).read_bytes() for name in ("a.jsonl", "a_info.jsonl", "a_run.json")}
    message = failing(capsys, arguments(pair, questions, *fixed, "--temperature", "0.5"))
    assert "temperature=1.0, this run has 0.5" in message
    message = failing(capsys, arguments(pair, questions, *fixed, "--depth", "1"))
    assert "tree=" in message
    assert before == {name: Path(name).read_bytes() for name in before}
    Path("a_run.json").unlink()
    assert "settings" in failing(capsys, arguments(pair, questions, *fixed))


def test_a_damaged_line_in_the_middle_is_named(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["--answer-file", "a.jsonl", "--question-end", "2"]
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, *fixed)) == 0
    first, second = Path("a.jsonl").read_text().splitlines(keepends=True)
    Path("a.jsonl").write_text(first[:30] + "\n" + second)
    assert "a.jsonl, line 1" in failing(capsys, arguments(pair, questions, *fixed))


def test_two_runs_cannot_write_the_same_files(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eagle.evaluation.answering.records import RunFiles

    with RunFiles.beside(Path("a.jsonl")).locked():
        assert "another run" in failing(capsys, arguments(pair, questions, "--answer-file", "a.jsonl"))


def test_answers_of_two_heads_at_one_path_are_not_mixed(
    pair: tuple[Path, Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = tmp_path / "head"
    shutil.copytree(pair[1], head)
    given = [*arguments((pair[0], head), questions), "--question-end"]
    for program in (gen_ea_answer_llama3chat, gen_baseline_answer_llama3chat):
        assert program.main([*given, "1"]) == 0
    recorded = json.loads(Path("mt_bench/f/tiny-temperature-1.0_ea_run.json").read_text())["settings"]
    sha256 = hashlib.sha256((head / "model.safetensors").read_bytes()).hexdigest()
    assert recorded["ea_model_sha256"]["model.safetensors"] == sha256
    write_head(head, *head_files(pair[0], seed=9))
    message = failing(capsys, [*given, "2"])
    assert "was made with another draft head: config.json, model.safetensors differ; " in message
    assert len(lines(Path("mt_bench/f/tiny-temperature-1.0_ea.jsonl"))) == 1
    # The baseline needs no head.
    assert gen_baseline_answer_llama3chat.main([*given, "2"]) == 0


def test_a_base_model_is_what_its_files_hold_wherever_they_are(
    pair: tuple[Path, Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "copies" / "base"
    shutil.copytree(pair[0], base)
    fixed = ["--answer-file", "a.jsonl", "--question-end"]
    assert gen_baseline_answer_llama3chat.main([*arguments(pair, questions), *fixed, "1"]) == 0
    run = json.loads(Path("a_run.json").read_text())
    assert run["environment"]["base_model"] == str(pair[0])
    assert str(pair[0]) not in json.dumps(run["settings"])
    # The same content by another spelling.
    given = arguments((Path("copies/base"), pair[1]), questions)
    assert gen_baseline_answer_llama3chat.main([*given, *fixed, "2"]) == 0
    assert len(lines(Path("a.jsonl"))) == 2
    # Other content by the same spelling.
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    capsys.readouterr()
    assert gen_baseline_answer_llama3chat.main([*given, *fixed, "3"]) == 2
    assert "was made with another base model: model.safetensors differs; choose" in capsys.readouterr().err
    assert len(lines(Path("a.jsonl"))) == 2


def test_a_full_disk_loses_nothing_finished(
    pair: tuple[Path, Path],
    questions: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    synced = []

    def fail_later(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 4:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail_later)
        assert "No space left" in failing(capsys, arguments(pair, questions, "--answer-file", "a.jsonl"))
    saved = Path("a.jsonl").read_text()
    assert len(saved.splitlines()) == 2
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, "--answer-file", "a.jsonl")) == 0
    assert Path("a.jsonl").read_text().startswith(saved)
    assert len(lines(Path("a.jsonl"))) == 6


def test_a_model_without_a_chat_template_is_explained(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = make_chat_pair(tmp_path / "plain", chat_template=None)
    assert "no chat template" in failing(capsys, arguments(pair, questions))


def test_what_cannot_be_answered_is_recorded_and_the_others_are_answered(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [
        {"question_id": "long", "turns": ["word " * 1000, "And then?"]},
        {"question_id": "longer", "turns": ["Hello.", "word " * 1000, "And then?"]},
    ]
    first = questions.read_text().splitlines()[0]
    # The first of all is one of them, which is where programs warm up.
    questions.write_text("\n".join([json.dumps(long[0]), first, json.dumps(long[1])]))
    given = arguments(pair, questions, "--answer-file", "a.jsonl")
    assert gen_ea_answer_llama3chat.main(given) == 0
    why = "leaves no room for an answer within the model's context of 2048"
    said = [line for line in capsys.readouterr().err.splitlines() if "could not be answered" in line]
    assert len(said) == 1
    assert "a.jsonl: 2 questions could not be answered in full: long, longer; question long, turn 1: the" in said[0]
    assert why in said[0]
    answers = lines(Path("a.jsonl"))
    assert [answer["question_id"] for answer in answers] == ["long", 81, "longer"]
    choices = [answer["choices"][0] for answer in answers]
    assert choices[0]["turns"] == ["", ""]
    assert "unanswered" not in choices[1]
    assert [bool(text) for text in choices[2]["turns"]] == [True, False, False]
    assert [choices[2][key][1:] for key in ("idxs", "new_tokens", "wall_time")] == [[-1, -1], [0, 0], [0.0, 0.0]]
    reasons = choices[2]["unanswered"]
    assert (reasons[0], reasons[2]) == (None, "the turn before it could not be answered")
    assert why in reasons[1]
    # Statistics leave them out and say so; the same command has nothing left to do.
    assert stats.main(["a.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "Questions that had a turn that could not be answered and are left out: " in said
    assert " 2 (long, longer)." in said
    before = Path("a.jsonl").read_bytes()
    assert gen_ea_answer_llama3chat.main(given) == 0
    assert Path("a.jsonl").read_bytes() == before


def test_what_no_question_can_pass_stops_the_run(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = failing(capsys, arguments(pair, questions, "--system-prompt", "word " * 1000))
    assert "no room" in message
    assert not list(Path("mt_bench/f").glob("*.jsonl"))


def test_a_template_may_refuse_a_question_but_not_every_one(
    tmp_path: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = (
        "{% for message in messages %}{% if message['role'] == 'system' or 'of 0' in message['content'] %}"
        "{{ raise_exception('not with me') }}{% endif %}{% endfor %}"
    )
    pair = make_chat_pair(tmp_path / "picky", chat_template=refusing + CHAT_TEMPLATE)
    given = arguments(pair, questions, "--answer-file", "a.jsonl", "--question-end", "2")
    assert "refuses this conversation: not with me" in failing(capsys, [*given, "--system-prompt", "Be kind."])
    assert gen_ea_answer_llama3chat.main(given) == 0
    assert "1 questions could not be answered in full: 81; question 81, turn 1: " in capsys.readouterr().err
    assert [bool(answer["choices"][0]["turns"][0]) for answer in lines(Path("a.jsonl"))] == [False, True]


def test_settings_that_do_not_tell_their_models_are_refused_in_one_line(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = arguments(pair, questions, "--answer-file", "a.jsonl", "--question-end", "1")
    assert gen_ea_answer_llama3chat.main(fixed) == 0
    run = json.loads(Path("a_run.json").read_text())
    del run["settings"]["base_model_sha256"]
    Path("a_run.json").write_text(json.dumps(run))
    before = Path("a.jsonl").read_bytes()
    assert "a version that did not record what its models hold" in failing(capsys, fixed)
    assert Path("a.jsonl").read_bytes() == before


@pytest.mark.parametrize("spelling", [".", "./", "../base", "../base/", "../head/../base"])
def test_files_are_named_after_the_folder_that_is_meant(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(pair[0])
    args = cli.parser(baseline=False).parse_args(["--base-model-path", spelling, "--ea-model-path", str(pair[1])])
    assert cell_of(args, None, 1.0, 1.0, {}).files.answers.name == "base-temperature-1.0_baseline.jsonl"


@pytest.mark.parametrize("name", ["--system-prompt", "--model-id"])
def test_what_is_no_text_on_the_command_line_is_one_line(
    pair: tuple[Path, Path], questions: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not valid text" in failing(capsys, arguments(pair, questions, name, "\udce4"))


@pytest.mark.parametrize("baseline", [False, True])
def test_options_of_two_words_have_two_spellings(baseline: bool) -> None:
    for parser in (cli.parser(baseline), sweep.parser()):
        one = parser.parse_args(["--use_eagle3", "--folder_id", "f", "--top_p", "0.9"])
        assert parser.parse_args(["--use-eagle3", "--folder-id", "f", "--top-p", "0.9"]) == one
