from itertools import product
from pathlib import Path

import pytest
import torch

from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.head import Eagle3Head
from eagle.target.target import Target
from eagle.train.batches import Document, batch_of
from eagle.train.steps import unroll
from tests.tiny import HIDDEN, VOCAB, head_files, make_base, stock_model, write_head

STEPS = 4
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
DOCUMENTS = ((9, 4), (3, 2), (14, 11), (12, 2))


def make_head(folder: Path, flags: dict[str, bool]) -> Eagle3Head:
    base = make_base("llama", folder / "base")
    target = Target(stock_model(base))
    head = load_head(str(write_head(folder / "head", *head_files(base, flags=flags))), target)
    return head.requires_grad_(True)


def packed() -> list[Document]:
    torch.manual_seed(3)
    return [Document(torch.randint(VOCAB, (length,)).tolist(), start) for length, start in DOCUMENTS]


@torch.no_grad()
def drafted(head: Eagle3Head, tokens: torch.Tensor, features: torch.Tensor, entry: int, steps: int) -> torch.Tensor:
    """Logits of a chain drafted from an entry, by the head's own forward over a cache."""
    cache = head.new_cache(entry + steps + 1)
    hidden = head.project(features[: entry + 1])
    first = cache.view(entry + 1, slice(entry + 1))
    logits, hidden = head.predict(head(tokens[1 : entry + 2], hidden, first)[-1:])
    rows = [logits]
    for step in range(1, steps):
        place = entry + step
        output = head(tokens[place + 1 : place + 2], hidden, cache.view(place + 1, slice(place, place + 1)))
        logits, hidden = head.predict(output)
        rows.append(logits)
    return torch.cat(rows)


# No format has both norms before fc.
@pytest.mark.parametrize("flags", [f for f in product((False, True), repeat=4) if not (f[1] and f[2])], ids=str)
def test_training_steps_are_what_the_head_does_when_it_drafts(flags: tuple[bool, ...], tmp_path: Path) -> None:
    head = make_head(tmp_path, dict(zip(FLAGS, flags, strict=True)))
    documents = packed()
    batch = batch_of(documents)
    features = torch.randn(len(batch.tokens), 3 * HIDDEN, dtype=torch.float64)
    logits = [head.lm_head(output) for output in unroll(head, batch, features, STEPS)]
    row, compared = 0, 0
    for document, (begin, end) in zip(documents, batch.bounds, strict=True):
        for place in range(document.rows):
            steps = min(STEPS, document.rows - place)
            entry = document.start - 2 + place
            chain = drafted(head, torch.tensor(document.tokens), features[begin:end], entry, steps)
            trained = torch.stack([logits[step][row] for step in range(steps)])
            torch.testing.assert_close(trained, chain, rtol=1e-10, atol=1e-10)
            row, compared = row + 1, compared + steps
    assert row == len(batch.rows)
    assert compared > 2 * row


def test_the_last_step_reaches_every_weight_and_the_features_before_it(tmp_path: Path) -> None:
    head = make_head(tmp_path, {"fc_norm": True})
    batch = batch_of(packed()[:1])
    features = torch.randn(len(batch.tokens), 3 * HIDDEN, dtype=torch.float64, requires_grad=True)
    head.lm_head(unroll(head, batch, features, STEPS)[-1][0]).square().sum().backward()
    for name, weight in head.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    entry = int(batch.rows[0])
    reached = features.grad.abs().sum(-1) > 0
    assert reached.tolist() == [place <= entry for place in range(len(batch.tokens))]
