"""How far a quantised model is from its original, as the command says it."""

from __future__ import annotations

import json

import pytest
import torch

from eagle.evaluation.audit import distance
from eagle.target.int8 import ENGINE
from tests.tiny import make_chat_pair


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pair")
    base, head = make_chat_pair(folder)
    questions = folder / "question.jsonl"
    lines = [{"question_id": number, "turns": ["why"]} for number in range(3)]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [
        *("--base-model-path", str(base), "--ea-model-path", str(head), "--question-file", str(questions)),
        *("--prompts", "2", "--tokens", "4"),
    ]


def test_laws_are_compared_row_by_row() -> None:
    law, other = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]]), torch.tensor([[0.25, 0.5, 0.25], [0.9, 0.1, 0.0]])
    found = distance.distance(law, other)
    torch.testing.assert_close(found.variation, torch.tensor([0.25, 0.0]))
    torch.testing.assert_close(found.divergence, torch.tensor([0.5 * torch.log(torch.tensor(2.0)), 0.0]))
    assert found.agree.tolist() == [0.0, 1.0]


@pytest.mark.skipif(ENGINE not in torch.backends.quantized.supported_engines, reason="no FBGEMM in this build of torch")
def test_it_says_how_far(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert distance.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("int8 beside float32, temperature 1: ")
    assert said[0].endswith(" places in 2 texts")
    variation = float(said[2].removeprefix("total variation").split()[0])
    # Another model, but not by much.
    assert 0 < variation < 0.1


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--temperature", "0"), "--temperature must be above 0"),
        (("--prompts", "0"), "--prompts must be 1 or more"),
        (("--dtype", "float64"), "not for weights in torch.float64"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], more: tuple[str, str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distance.main([*arguments, *more]) == 2
    said = capsys.readouterr().err
    assert "error: " in said.splitlines()[-1]
    assert why in said.splitlines()[-1]
