"""The draft vocabulary of a folder of answers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from eagle.errors import InputError
from eagle.train.__main__ import main
from eagle.train.answers import Answer
from eagle.train.vocab import DraftVocabulary, VocabSettings, build_vocabulary, default_size, most_frequent
from tests.tiny import make_base

EOS = 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base("llama", tmp_path_factory.mktemp("vocab") / "base", vocab_size=20, eos_token_id=EOS)


def answered(out: Path, *answers: list[int]) -> Path:
    folder = out / "answers"
    folder.mkdir(parents=True)
    lines = [asdict(Answer(f"{i}@1", [0, 19, 19, 19], answer, 1.0, False)) for i, answer in enumerate(answers)]
    (folder / "answers-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


def test_the_most_frequent_tokens_and_the_end_are_kept(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = answered(tmp_path, [7, 7, 7, 9, 9], [2, 2, 11])
    vocabulary = build_vocabulary(VocabSettings(base_model_path=str(base), out=out, size=4))
    assert vocabulary.target_ids.tolist() == [2, EOS, 7, 9]
    assert (torch.arange(4) + vocabulary.d2t).tolist() == [2, EOS, 7, 9]
    assert vocabulary.t2d.nonzero()[:, 0].tolist() == [2, EOS, 7, 9]
    assert "4 of 20 tokens, which are 87.50% of the 8 tokens of 2 answers" in capsys.readouterr().err
    read = DraftVocabulary.load(out / "vocab.safetensors")
    assert torch.equal(read.d2t, vocabulary.d2t)
    assert torch.equal(read.t2d, vocabulary.t2d)
    assert (read.d2t.dtype, read.t2d.dtype) == (torch.int64, torch.bool)


def test_room_is_filled_with_the_lowest_unused_tokens(base: Path, tmp_path: Path) -> None:
    vocabulary = build_vocabulary(VocabSettings(str(base), answered(tmp_path, [7, 9]), size=6))
    assert vocabulary.target_ids.tolist() == [0, 1, 2, EOS, 7, 9]


def test_the_whole_vocabulary_is_the_identity(base: Path, tmp_path: Path) -> None:
    vocabulary = build_vocabulary(VocabSettings(str(base), answered(tmp_path, [7, 9]), size=20))
    assert vocabulary.d2t.tolist() == [0] * 20
    assert bool(vocabulary.t2d.all())


def test_default_sizes() -> None:
    assert default_size(49152) == 8192
    assert default_size(128256) == default_size(151936) == 32000
    assert default_size(3) == 1


@pytest.mark.parametrize("size", [0, 21])
def test_a_size_the_target_cannot_give_is_an_error(size: int) -> None:
    with pytest.raises(InputError, match=f"{size} tokens: it must be between 1 and the target's 20"):
        most_frequent(torch.ones(20, dtype=torch.int64), size, [EOS])


def test_answers_of_another_model_are_an_error(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token 20, but the target has 20"):
        build_vocabulary(VocabSettings(str(base), answered(tmp_path, [7, 20])))


def test_files_that_are_no_vocabulary_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "vocab.safetensors"
    with pytest.raises(InputError, match=r"python -m eagle\.train vocab"):
        DraftVocabulary.load(file)
    file.write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot read the draft vocabulary"):
        DraftVocabulary.load(file)
    DraftVocabulary(torch.tensor([1, 1]), torch.tensor([True, False, True])).save(file)
    with pytest.raises(InputError, match="other tokens"):
        DraftVocabulary.load(file)


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one_is_refused(size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vocab", "--size", str(size), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --size must be 1 or more, not {size}\n"


def test_reading_the_answers_is_shown(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_vocabulary(VocabSettings(base_model_path=str(base), out=answered(tmp_path, [7, 7, 9]), size=4))
    assert "answers: 100%" in capsys.readouterr().err
