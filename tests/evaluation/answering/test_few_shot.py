"""Exemplars before questions: the text that the model is asked, what is recorded of it, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from eagle.evaluation import gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat, sweep
from eagle.evaluation.answering.few_shot import read_exemplars
from tests.evaluation.answering.program import failing
from tests.evaluation.programs import NEW_TOKENS, arguments, lines
from tests.tiny import load_pair

ONE = "Question: There are 2 eggs and 3 more. How many?\nLet's think step by step.\n2 + 3 = 5.\nThe answer is 5."
TWO = "Question: What is 4 - 1?\nThe answer is 3."
GREEDY = ("--temperature", "0", "--dtype", "float64")
RUN = Path("mt_bench/f/tiny-temperature-0.0_ea_run.json")


@pytest.fixture
def exemplars(tmp_path: Path) -> Path:
    file = tmp_path / "exemplars.txt"
    file.write_bytes(f"\n{ONE}\n\n\n{TWO}\n".replace("\n", "\r\n").encode())
    return file


def test_blocks_are_read_whatever_is_between_them(exemplars: Path) -> None:
    assert read_exemplars(exemplars) == f"{ONE}\n\n{TWO}"
    assert read_exemplars(None) is None


def test_the_model_is_asked_the_template_of_exemplars_and_question_in_one_turn(
    pair: tuple[Path, Path], questions: Path, exemplars: Path
) -> None:
    few = ("--few-shot", str(exemplars), "--system-prompt", "Count.", "--question-end", "2")
    for program, name in ((gen_ea_answer_llama3chat, "ea"), (gen_baseline_answer_llama3chat, "baseline")):
        assert program.main(arguments(pair, questions, *GREEDY, *few)) == 0
        answers = lines(Path(f"mt_bench/f/tiny-temperature-0.0_{name}.jsonl"))
    grid = ("--folder_id", "grid", "--method", "eagle3")
    assert sweep.main(arguments(pair, questions, *GREEDY, *few, *grid)) == 0
    assert [answer["choices"][0]["turns"] for answer in lines(Path("mt_bench/grid/tiny-temperature-0.0_ea.jsonl"))] == [
        answer["choices"][0]["turns"] for answer in answers
    ]

    model, tokenizer = load_pair(*pair), AutoTokenizer.from_pretrained(pair[0])
    for number, answer in enumerate(answers):
        first = f"{ONE}\n\n{TWO}\n\nQuestion: Tell me of {number}."
        written = f"<s>system: Count.</s><s>user: {first}</s><s>assistant: "
        # The second turn is as it stands in the file.
        for turn, then in zip(
            answer["choices"][0]["turns"], ("</s><s>user: And then?</s><s>assistant: ", ""), strict=True
        ):
            ids = tokenizer(written, add_special_tokens=False, return_tensors="pt").input_ids
            greedy = model.base_model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=1
            )
            assert turn == tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True).strip()
            written += turn + then


def test_a_run_without_exemplars_is_recorded_as_ever_and_takes_none_later(
    pair: tuple[Path, Path], questions: Path, exemplars: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = arguments(pair, questions, *GREEDY)
    assert gen_ea_answer_llama3chat.main([*plain, "--question-end", "1"]) == 0
    assert not any("few_shot" in name for name in json.loads(RUN.read_text())["settings"])
    assert "few_shot_sha256=None" in failing(capsys, [*plain, "--few-shot", str(exemplars)])
    assert gen_ea_answer_llama3chat.main([*plain, "--question-end", "2"]) == 0
    assert len(lines(Path("mt_bench/f/tiny-temperature-0.0_ea.jsonl"))) == 2


def test_a_run_goes_on_only_with_the_exemplars_it_began_with(
    pair: tuple[Path, Path], questions: Path, exemplars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = arguments(pair, questions, *GREEDY)
    assert gen_ea_answer_llama3chat.main([*plain, "--few-shot", str(exemplars), "--question-end", "1"]) == 0
    settings = json.loads(RUN.read_text())["settings"]
    assert settings["few_shot_sha256"] == hashlib.sha256(f"{ONE}\n\n{TWO}".encode()).hexdigest()
    assert "few_shot" not in settings
    other = tmp_path / "other.txt"
    other.write_text(f"{ONE}\n")
    assert "was made with few_shot_sha256=" in failing(capsys, [*plain, "--few-shot", str(other)])
    assert "was made with few_shot_sha256=" in failing(capsys, plain)
    # Another file with the same exemplars.
    other.write_text(f"{ONE}\n\n{TWO}")
    assert gen_ea_answer_llama3chat.main([*plain, "--few-shot", str(other), "--question-end", "2"]) == 0
    assert len(lines(Path("mt_bench/f/tiny-temperature-0.0_ea.jsonl"))) == 2


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot read exemplars.txt: No such file or directory"),
        (b"", "exemplars.txt is empty"),
        (b" \n\n", "exemplars.txt is empty"),
        (b"\xff\xfe", "exemplars.txt is not valid UTF-8"),
        (b"2 + 2 = 4\n", "exemplars.txt, line 1: a block of exemplars must begin with 'Question:'"),
        (f"{TWO}\n\nThe answer is 5.\n".encode(), "exemplars.txt, line 4: a block"),
        (b"\nQuestion: What is 4 - 1?\n", "exemplars.txt, line 2: an exemplar needs its question and"),
        (b"Question:\n3\n", "exemplars.txt, line 1: an exemplar needs its question and"),
    ],
)
def test_what_is_no_exemplars_is_one_line_before_anything_is_written(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, why: str
) -> None:
    if content is not None:
        Path("exemplars.txt").write_bytes(content)
    error = failing(capsys, arguments(pair, questions, "--few-shot", "exemplars.txt"))
    assert error.startswith("error: --few-shot: ")
    assert why in error
    assert not Path("mt_bench").exists()


def test_exemplars_as_long_as_the_context_are_one_line(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("exemplars.txt").write_text(f"{TWO}\n\n" * 60)
    failing(capsys, arguments(pair, questions, "--few-shot", "exemplars.txt"))
    assert not list(Path().rglob("*_ea.jsonl"))
