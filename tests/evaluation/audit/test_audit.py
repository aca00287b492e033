"""The audit as people run it, on pairs of a few tokens: lossless methods pass, the published rule does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eagle.evaluation.audit import __main__ as audit
from tests.tiny import head_files, make_base, make_chat_pair, write_head

LETTERS = "abcd"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A chat pair of four tokens, where the bias of the published rule is large."""
    folder = tmp_path_factory.mktemp("letters")
    vocab = {letter: token for token, letter in enumerate(LETTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    base = make_base("llama", folder / "base", vocab_size=len(LETTERS), num_hidden_layers=3)
    fast.save_pretrained(base)
    return base, write_head(folder / "head", *head_files(base, draft_vocab=4, weight=0.25))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    lines = [{"question_id": f"q{number}", "turns": [turn]} for number, turn in enumerate(["dbabc", "abba", "ccdab"])]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def arguments(pair: tuple[Path, Path], questions: Path, *more: str) -> list[str]:
    return [
        *("--base-model-path", str(pair[0]), "--ea-model-path", str(pair[1]), "--dtype", "float64", "--device", "cpu"),
        *("--question-file", str(questions), "--total-token", "8", "--depth", "2", "--top-k", "3"),
        *more,
    ]


def report(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


FEW = ("--draws", "100", "--prompts", "2", "--format", "json")


@pytest.mark.parametrize("method", ["hsd", "eagle3", "chain:hsd"])
def test_lossless_methods_pass(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    assert audit.main(arguments(pair, questions, "--method", method, *FEW)) == 0
    found = report(capsys)
    assert found["difference"] is False
    assert all(prompt["drafted"] > 0.2 for prompt in found["prompts"])
    assert [prompt["question_id"] for prompt in found["prompts"]] == ["q0", "q1"]
    tests = [(result["prompt"], result["test"]) for result in found["tests"]]
    each = ["token 2", "token 3", "token 4", "texts"]
    assert tests == [
        *(("q0", test) for test in each),
        *(("q1", test) for test in each),
        ("all prompts", "tokens"),
        ("all prompts", "texts"),
    ]
    assert all(found["settings"]["alpha"] < result["holm"] <= 1 for result in found["tests"])
    assert all(0 < result["p"] <= result["holm"] for result in found["tests"])


@pytest.mark.filterwarnings("ignore:hsd_published")
def test_the_published_rule_is_found_out(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = ("--method", "chain:hsd_published", "--draws", "500", "--prompts", "1")
    assert audit.main(arguments(pair, questions, *published)) == 1
    shown = capsys.readouterr().out
    assert "DIFFERENCE: the texts of chain:hsd_published" in shown
    assert "all prompts" in shown


def test_a_seed_decides_the_report(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for seed in ("1", "1", "2"):
        few = ("--draws", "40", "--prompts", "1", "--format", "json", "--seed", seed)
        assert audit.main(arguments(pair, questions, *few)) == 0
        reports.append(report(capsys)["tests"])
    assert reports[0] == reports[1] != reports[2]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--method", "medusa"], "a method is eagle3, hsd or [DRAFTER/]TREE:RULE"),
        (["--method", "forest:hsd"], "tree must be one of"),
        (["--method", "hybrid:hsd_published"], "deterministic"),
        (["--method", "deterministic:blockwise"], "tree='chain'"),
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--temperature", "nan"], "temperature"),
        (["--top_p", "2"], "top_p"),
        (["--draws", "3"], "--draws"),
        (["--tokens", "1"], "--tokens"),
        (["--tokens", "250"], "question q0: the prompt of 5 tokens leaves no room"),
        (["--prompts", "0"], "--prompts"),
        (["--alpha", "1"], "--alpha"),
        (["--seed", "-1"], "--seed"),
        (["--question-begin", "7"], "no questions"),
        (["--question-file", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--method", "eagle3", "--rho", "0.5"], "--rho is for hybrid trees"),
    ],
)
def test_bad_input_is_explained(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str], more: list[str], complaint: str
) -> None:
    assert audit.main(arguments(pair, questions, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert complaint in error


def test_a_model_without_a_chat_template_is_refused(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = make_chat_pair(tmp_path / "bare", chat_template=None)
    assert audit.main(arguments(bare, questions)) == 2
    assert "error: the tokenizer of" in capsys.readouterr().err


def test_what_is_said_of_the_pair_is_heeded(
    pair: tuple[Path, Path], questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("eagle.model.ea_model.compile_target", asked.append)
    monkeypatch.setattr("eagle.drafters.eagle3.drafter.HeadDrafter.compile", lambda drafter: None)
    assert audit.main(arguments(pair, questions, "--compile", "on", "--method", "eagle3", *FEW)) == 0
    assert len(asked) == 1
