from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eagle.target.target import Target
from eagle.train.batches import Document, batch_of
from eagle.train.features import NOT_IN_DRAFT, Reader
from tests.tiny import ARCHITECTURES, COMMON, HEADS, VOCAB, make_base, stock_model

LAYERS = (2, 3, 6)


def documents() -> list[Document]:
    torch.manual_seed(3)
    return [
        Document(torch.randint(VOCAB, (length,)).tolist(), start)
        for length, start in ((9, 4), (3, 2), (14, 11), (12, 2))
    ]


def check_against_separate_forwards(reader: Reader, stock: torch.nn.Module, vocabulary: torch.Tensor) -> None:
    packed = documents()
    reading = reader.read(batch_of(packed))
    features, laws = [], []
    with torch.no_grad():
        for document in packed:
            output = stock(torch.tensor([document.tokens]), output_hidden_states=True)
            features.append(torch.cat([output.hidden_states[entry][0] for entry in LAYERS], dim=-1))
            laws.append(output.logits[0, document.start - 1 : -1].softmax(-1))
    full = torch.cat(laws)
    torch.testing.assert_close(reading.features, torch.cat(features), rtol=0, atol=1e-10)
    torch.testing.assert_close(reading.law, full[:, vocabulary], rtol=0, atol=1e-10)
    drafted = vocabulary.tolist()
    expected = [drafted.index(token) if token in drafted else NOT_IN_DRAFT for token in full.argmax(-1).tolist()]
    assert reading.favourite.tolist() == expected
    assert NOT_IN_DRAFT in expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_documents_read_like_separate_ones(architecture: str, tmp_path: Path) -> None:
    folder = make_base(architecture, tmp_path)
    vocabulary = torch.tensor([0, 2, 3, 6])
    reader = Reader(Target(stock_model(folder), LAYERS), vocabulary)
    assert reader.obstacle is None
    check_against_separate_forwards(reader, stock_model(folder), vocabulary)


def test_an_architecture_that_cannot_be_packed_is_read_document_by_document() -> None:
    torch.manual_seed(0)
    own = {"sliding_window": 5, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4}
    config = AutoConfig.for_model("gemma2", **COMMON | HEADS | own)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").eval()
    stock = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="eager").eval()
    stock.load_state_dict(model.state_dict())
    vocabulary = torch.tensor([1, 2, 3, 4])
    reader = Reader(Target(model, LAYERS), vocabulary)
    assert reader.obstacle == "the model caps its attention scores (softcap)"
    check_against_separate_forwards(reader, stock, vocabulary)
