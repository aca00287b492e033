"""Arguments of the chat template, in the programs that answer and audit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from eagle.evaluation import gen_baseline_answer_llama3chat, gen_ea_answer_llama3chat, sweep
from eagle.evaluation.audit import __main__ as audit
from tests.evaluation.programs import NEW_TOKENS, arguments, lines
from tests.tiny import CHAT_TEMPLATE, load_pair, make_chat_pair

THINKING = CHAT_TEMPLATE + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
OFF = ("--chat-template-kwargs", '{"enable_thinking": false}')
GREEDY = ("--temperature", "0", "--dtype", "float64")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_chat_pair(tmp_path_factory.mktemp("chat"), THINKING)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps({"question_id": n, "turns": [f"Tell {n}.", "More."]}) + "\n" for n in (1, 2)))
    return file


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "cache"))


def error(capsys: pytest.CaptureFixture[str]) -> str:
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))


def test_answers_are_those_to_the_text_that_the_template_makes(pair: tuple[Path, Path], questions: Path) -> None:
    single = arguments(pair, questions, *GREEDY, *OFF)
    for program, name in ((gen_ea_answer_llama3chat, "ea"), (gen_baseline_answer_llama3chat, "baseline")):
        assert program.main(single) == 0
        answers = lines(Path(f"mt_bench/f/tiny-temperature-0.0_{name}.jsonl"))
        assert [answer["question_id"] for answer in answers] == [1, 2]
    assert sweep.main(arguments(pair, questions, *GREEDY, *OFF, "--folder_id", "grid", "--method", "eagle3")) == 0
    grid = lines(Path("mt_bench/grid/tiny-temperature-0.0_ea.jsonl"))

    model, tokenizer = load_pair(*pair), AutoTokenizer.from_pretrained(pair[0])
    for answer, in_grid in zip(answers, grid, strict=True):
        chat = []
        for text, turn in zip((f"Tell {answer['question_id']}.", "More."), answer["choices"][0]["turns"], strict=True):
            chat.append({"role": "user", "content": text})
            ids = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=False, enable_thinking=False
            )
            assert tokenizer.decode(ids[0]).endswith("<think></think>")
            greedy = model.base_model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=1
            )
            expected = tokenizer.decode(greedy[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert turn == expected
            chat.append({"role": "assistant", "content": expected})
        assert in_grid["choices"][0]["turns"] == answer["choices"][0]["turns"]


def test_a_run_goes_on_only_with_the_arguments_it_began_with(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = questions.read_text()
    plain = arguments(pair, questions, *GREEDY)
    assert gen_ea_answer_llama3chat.main([*plain, "--question-end", "1"]) == 0
    # As an older version wrote it, which knew of no arguments.
    run = Path("mt_bench/f/tiny-temperature-0.0_ea_run.json")
    recorded = json.loads(run.read_text())
    assert recorded["settings"].pop("chat_template_kwargs") is None
    run.write_text(json.dumps(recorded))
    assert gen_ea_answer_llama3chat.main([*plain, *OFF]) == 2
    assert "was made with chat_template_kwargs=None, this run has {'enable_thinking': False}" in error(capsys)
    assert gen_ea_answer_llama3chat.main(plain) == 0
    assert len(lines(Path("mt_bench/f/tiny-temperature-0.0_ea.jsonl"))) == 2

    other = arguments(pair, questions, *GREEDY, "--folder_id", "other")
    two = ("--chat-template-kwargs", '{"enable_thinking": false, "role": 1}')
    assert gen_ea_answer_llama3chat.main([*other, *two, "--question-end", "1"]) == 0
    assert gen_ea_answer_llama3chat.main(other) == 2
    assert "chat_template_kwargs" in error(capsys)
    # The same arguments, written otherwise.
    assert gen_ea_answer_llama3chat.main([*other, two[0], '{"role":1,  "enable_thinking":false}']) == 0
    assert len(lines(Path("mt_bench/other/tiny-temperature-0.0_ea.jsonl"))) == 2
    assert questions.read_text() == both


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("enable_thinking=False", "error: --chat-template-kwargs must be a JSON object"),
        ('{"tokenize": true}', "error: --chat-template-kwargs: 'tokenize' is not for the template to decide"),
        ('{"thinking": true}', "does not read 'thinking'"),
        ('{"chat_template": "rag"}', "has one chat template, without a name"),
    ],
)
def test_what_is_not_for_the_template_is_refused_before_anything_is_written(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str], given: str, why: str
) -> None:
    option = ("--chat-template-kwargs", given)
    for program in (gen_ea_answer_llama3chat, gen_baseline_answer_llama3chat, sweep):
        assert program.main(arguments(pair, questions, *option)) == 2
        assert why in error(capsys)
    paths = ("--base-model-path", str(pair[0]), "--ea-model-path", str(pair[1]), "--device", "cpu")
    assert audit.main([*paths, "--question-file", str(questions), *option]) == 2
    assert why in error(capsys)
    assert not list(Path().rglob("*.jsonl")) or list(Path().rglob("*.jsonl")) == [Path("question.jsonl")]


def test_an_audit_takes_them_and_shows_them(
    pair: tuple[Path, Path], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("--base-model-path", str(pair[0]), "--ea-model-path", str(pair[1]), "--device", "cpu")
    few = ("--draws", "20", "--prompts", "1", "--tokens", "2", "--dtype", "float64", "--format", "json")
    assert audit.main([*paths, "--question-file", str(questions), *few, *OFF]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_system_prompt_that_the_template_refuses_is_one_line_before_any_question(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    pair = make_chat_pair(tmp_path / "strict", refusing + CHAT_TEMPLATE)
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, "--system-prompt", "Be short.")) == 2
    assert error(capsys).startswith("error: --system-prompt: the model's chat template refuses this conversation")


def test_several_templates_without_a_default_are_named_and_one_can_be_chosen(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = make_chat_pair(tmp_path / "several", {"rag": CHAT_TEMPLATE, "tool_use": THINKING})
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions)) == 2
    assert "several chat templates (rag, tool_use) and no default" in error(capsys)
    chosen = ("--chat-template-kwargs", '{"chat_template": "tool_use"}')
    assert gen_ea_answer_llama3chat.main(arguments(pair, questions, *GREEDY, *chosen)) == 0
    assert len(lines(Path("mt_bench/f/tiny-temperature-0.0_ea.jsonl"))) == 2
