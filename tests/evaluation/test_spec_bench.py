"""Spec-Bench: its questions, its layout of answers, its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle.data.questions import load_questions
from eagle.evaluation import equal, gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat, speed
from eagle.evaluation.answering import bench
from tests.evaluation.programs import arguments, lines
from tests.tiny import make_chat_pair, write_letters

# Question: category, its turns' texts (a letter a token), seconds of each turn, and what the rounds emitted.
QUESTIONS = {
    81: ("writing", ["abcd", "abc"]),
    91: ("math", ["abcdefa", "ab"]),
    161: ("translation", ["abcde"]),
    241: ("summarization", ["abc"]),
    321: ("qa", ["abcdef"]),
    401: ("math_reasoning", ["ab"]),
    481: ("rag", ["abcd"]),
}


def answers(file: Path, seconds: float, emits: int, more: int = 0) -> Path:
    """Answers in Spec-Bench's layout: each turn takes so many seconds, each round emits so many tokens.

    ``more`` tokens a turn are recorded beyond those of its text: what ends it, which is in no text.
    """
    written = []
    for question, (category, turns) in QUESTIONS.items():
        new_tokens = [len(turn) + more for turn in turns]
        steps = [-(-tokens // emits) for tokens in new_tokens]
        choice = {
            "index": 0,
            "turns": turns,
            "decoding_steps": steps,
            "new_tokens": new_tokens,
            "wall_time": [seconds] * len(turns),
            "accept_lengths": [emits] * sum(steps),
        }
        about = {"question_id": question, "category": category, "answer_id": "a", "model_id": "m"}
        written.append(about | {"choices": [choice], "tstamp": 0.0})
    file.write_text("".join(json.dumps(line) + "\n" for line in written))
    return file


def table(text: str) -> dict[str, list[str]]:
    names = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag", "overall")
    return {
        line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()[:1] and line.split()[0] in names
    }


def test_the_six_tasks_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = write_letters(tmp_path / "letters")
    baseline = answers(tmp_path / "vanilla.jsonl", seconds=2.0, emits=1, more=1)
    one, other = answers(tmp_path / "one.jsonl", 1.0, 2, more=1), answers(tmp_path / "other.jsonl", 0.5, 3, more=1)
    for file, seconds, emits in ((one, 1.0, "2.000"), (other, 0.5, "3.000")):
        asked = ["--file-path", str(file), "--base-path", str(baseline), "--tokenizer-path", str(tokenizer)]
        assert speed.main(asked) == 0
        found = table(capsys.readouterr().out)
        assert list(found) == ["mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag", "overall"]
        # mt_bench: questions of 9 and 11 new tokens in two turns each; the baseline's are 5 and 7, a token less a turn
        # than its texts have, in 4 seconds.
        ours, base = (9 + 11) / 2 / (2 * seconds), (5 / 4 + 7 / 4) / 2
        assert found["mt_bench"] == ["2", f"{ours:.2f}", f"{base:.2f}", f"{ours / base:.2f}x", emits]
        for task, letters in (("translation", 5), ("summarization", 3), ("qa", 6), ("math_reasoning", 2), ("rag", 4)):
            ours, base = (letters + 1) / seconds, (letters - 1) / 2
            assert found[task] == ["1", f"{ours:.2f}", f"{base:.2f}", f"{ours / base:.2f}x", emits]
        ours = ((9 + 11) / 2 + 6 + 4 + 7 + 3 + 5) / 7 / seconds
        base = (5 / 4 + 7 / 4 + 2 + 1 + 2.5 + 0.5 + 1.5) / 7
        assert found["overall"] == ["7", f"{ours:.2f}", f"{base:.2f}", f"{ours / base:.2f}x", emits]
    # As recorded the baseline has two tokens more a turn.
    assert speed.main([str(one), str(other), str(baseline), "--arithmetic", "spec_bench"]) == 0
    assert table(capsys.readouterr().out)["rag"][2] == "2.50"


def test_a_page_has_a_bar_for_each_run_and_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = answers(tmp_path / "vanilla.jsonl", 2.0, 1)
    files = [str(answers(tmp_path / f"{name}.jsonl", seconds, 2)) for name, seconds in (("one", 1.0), ("other", 0.5))]
    page = tmp_path / "pages" / "speed.html"
    assert speed.main([*files, str(baseline), "--html", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    html = page.read_text()
    assert html.count('<div style="width: 50.0%">2.00x</div>') == 7
    assert html.count('<div style="width: 100.0%">4.00x</div>') == 7
    assert "<script" not in html


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["a.jsonl"], "give FILE... BASELINE"),
        (["--file-path", "a.jsonl"], "--file-path and --base-path, both"),
        (["a.jsonl", "b.jsonl", "--tokenizer-path", "t"], "--tokenizer-path is for Spec-Bench's arithmetic"),
    ],
)
def test_what_speed_cannot_make_sense_of_is_one_line(
    capsys: pytest.CaptureFixture[str], asked: list[str], complaint: str
) -> None:
    assert speed.main(asked) == 2
    assert complaint in capsys.readouterr().err


def test_equal_takes_its_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "other"):
        answers(tmp_path / f"{name}.jsonl", 1.0, 2)
    asked = ["--file-path", str(tmp_path), "--jsonfile1", "one.jsonl", "--jsonfile2", "other.jsonl"]
    assert equal.main(asked) == 0
    assert "7 of 7 answers are equal" in capsys.readouterr().out
    assert equal.main(asked[:4]) == 2
    assert "equal compares two runs" in capsys.readouterr().err


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    records = [
        {"question_id": 81, "category": "writing", "turns": ["Tell.", "More."], "reference": ["x", "y"]},
        {"question_id": 401, "category": "rag", "turns": ["What?"], "reference": [["one", "another"]]},
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_several_right_answers_are_read(questions: Path) -> None:
    assert [question.reference for question in load_questions(questions)] == [("x", "y"), ("one",)]


def test_answers_are_laid_out_as_spec_bench_has_them(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = make_chat_pair(tmp_path)
    monkeypatch.chdir(tmp_path)
    files = {}
    for program, name, more in (
        (gen_ea_answer_llama3chat, "ea", ["--drafter", "eagle3+suffix"]),
        (gen_baseline_answer_llama3chat, "baseline", []),
    ):
        files[name] = tmp_path / f"{name}.jsonl"
        how = ["--temperature", "0", "--format", "spec_bench", "--answer-file", str(files[name]), *more]
        assert program.main(arguments(pair, questions, *how)) == 0
    for name, file in files.items():
        for line in lines(file):
            assert list(line) == ["question_id", "category", "answer_id", "model_id", "choices", "tstamp"]
            (choice,) = line["choices"]
            assert list(choice) == ["index", "turns", "new_tokens", "wall_time", "decoding_steps", "accept_lengths"]
            assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
            # The first token of a turn is of no round.
            assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"]) - len(choice["turns"])
            assert name == "ea" or set(choice["accept_lengths"]) == {1}
    capsys.readouterr()
    assert equal.main([str(files["ea"]), str(files["baseline"])]) == 0
    assert speed.main(["--file-path", str(files["ea"]), "--base-path", str(files["baseline"])]) == 0
    found = table(capsys.readouterr().out)
    assert [found[task][0] for task in ("mt_bench", "rag", "overall")] == ["1", "1", "2"]
    # Lines of both layouts do not go into one file.
    other = arguments(pair, questions, "--temperature", "0", "--answer-file", str(files["baseline"]))
    assert gen_baseline_answer_llama3chat.main(other) == 2
    assert "layout" in capsys.readouterr().err


def test_its_questions_are_fetched_once_and_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))
    served = tmp_path / "served.jsonl"
    served.write_text('{"question_id": 1, "turns": ["?"]}\n')
    monkeypatch.setattr(bench, "SPEC_BENCH_URL", served.as_uri())
    asked = ["--bench-name", "spec_bench", "--device", "cpu"]
    assert gen_baseline_answer_llama3chat.main(asked) == 2
    assert "not the pinned" in capsys.readouterr().err
    monkeypatch.setattr(bench, "SPEC_BENCH_SHA256", bench.hashlib.sha256(served.read_bytes()).hexdigest())
    args = gen_args(asked)
    assert bench.question_file(args).read_text() == served.read_text()
    monkeypatch.setattr(bench, "SPEC_BENCH_URL", (tmp_path / "gone").as_uri())
    assert bench.question_file(args).read_text() == served.read_text()
    bench.question_file(args).unlink()
    assert gen_baseline_answer_llama3chat.main(asked) == 2
    assert "could not be fetched" in capsys.readouterr().err


def gen_args(asked: list[str]):
    from eagle.evaluation.answering.cli import parser

    return parser(baseline=True).parse_args(asked)
