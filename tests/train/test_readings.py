"""Readings that are kept are those that are made, after a kill and a full disk too."""

import resource
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eagle.errors import InputError
from eagle.target.target import Target
from eagle.train.batches import Document, batch_of
from eagle.train.features import Reader, Reading
from eagle.train.readings import KeptReadings
from tests.tiny import COMMON, HEADS, VOCAB, make_base, stock_model

LAYERS = (2, 3, 6)
VOCABULARY = torch.tensor([0, 2, 3, 6])


@pytest.fixture
def documents() -> list[Document]:
    torch.manual_seed(3)
    lengths = ((9, 4), (3, 2), (14, 11), (12, 2))
    return [Document(torch.randint(VOCAB, (length,)).tolist(), start) for length, start in lengths]


def reader(tmp_path: Path, architecture: str = "llama") -> Reader:
    return Reader(Target(stock_model(make_base(architecture, tmp_path / "base")), LAYERS), VOCABULARY)


def assert_equal(kept: Reading, made: Reading) -> None:
    for each in fields(Reading):
        torch.testing.assert_close(getattr(kept, each.name), getattr(made, each.name), rtol=0, atol=1e-10)


def read(kept: KeptReadings, documents: list[Document], indices: list[int]) -> Reading:
    return kept.read(batch_of([documents[index] for index in indices]), indices)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_each_document_is_read_once_and_kept_as_it_was(
    architecture: str, documents: list[Document], tmp_path: Path
) -> None:
    source, file = reader(tmp_path, architecture), tmp_path / "readings.bin"
    kept = KeptReadings(source, documents, file)
    for indices in ([0, 2], [3], [1, 2]):
        assert_equal(read(kept, documents, indices), source.read(batch_of([documents[index] for index in indices])))
    size = file.stat().st_size
    # All documents are there by now, so the target is not needed, and the file stays as it is.
    source.target.model.forward = None
    again = KeptReadings(source, documents, file)
    assert read(again, documents, [2, 1, 0, 3]).law.shape == (sum(each.rows for each in documents), len(VOCABULARY))
    assert file.stat().st_size == size


def test_a_torn_document_is_read_anew(documents: list[Document], tmp_path: Path) -> None:
    source, file = reader(tmp_path), tmp_path / "readings.bin"
    made = read(KeptReadings(source, documents, file), documents, [0, 1])
    with file.open("r+b") as torn:
        torn.truncate(file.stat().st_size - 3)
    assert_equal(read(KeptReadings(source, documents, file), documents, [0, 1]), made)


def test_a_full_disk_is_an_error_and_what_was_kept_stays(documents: list[Document], tmp_path: Path) -> None:
    source, file = reader(tmp_path), tmp_path / "readings.bin"
    made = read(KeptReadings(source, documents, file), documents, [1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(InputError, match="the same command resumes"):
            read(KeptReadings(source, documents, file), documents, [0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_equal(read(KeptReadings(source, documents, file), documents, [1]), made)


def test_a_file_of_other_answers_is_refused(documents: list[Document], tmp_path: Path) -> None:
    source, file = reader(tmp_path), tmp_path / "readings.bin"
    read(KeptReadings(source, documents, file), documents, [3])
    with pytest.raises(InputError, match="other answers"):
        KeptReadings(source, documents[:2], file)


def test_a_target_that_caps_its_logits_is_refused(documents: list[Document], tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = {"final_logit_softcapping": 0.5, "attn_logit_softcapping": None, "query_pre_attn_scalar": 4}
    config = AutoConfig.for_model("gemma2", **COMMON | HEADS | own)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").eval()
    kept = KeptReadings(Reader(Target(model, LAYERS), VOCABULARY), documents, tmp_path / "readings.bin")
    with pytest.raises(InputError, match="leave out --keep-readings"):
        read(kept, documents, [0])
