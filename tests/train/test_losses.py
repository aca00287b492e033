import pytest
import torch

from eagle.train.features import NOT_IN_DRAFT, Reading
from eagle.train.losses import Judged, Loss, judge

ROWS, LAWS, WIDTH, DRAFT = 150, 20, 6, 11


def situation() -> tuple[torch.Tensor, torch.Tensor, Reading, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    outputs = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(DRAFT, WIDTH, dtype=torch.float64, requires_grad=True)
    law = (2 * torch.randn(LAWS, DRAFT + 5, dtype=torch.float64)).softmax(-1)
    best = law.argmax(-1)
    favourite = best.where(best < DRAFT, NOT_IN_DRAFT)
    reading = Reading(torch.zeros(LAWS, 1), law[:, :DRAFT], favourite)
    return outputs, weight, reading, torch.randint(LAWS, (ROWS,)), torch.rand(ROWS, dtype=torch.float64)


def obvious(
    outputs: torch.Tensor,
    weight: torch.Tensor,
    reading: Reading,
    places: torch.Tensor,
    scale: torch.Tensor,
    loss: Loss,
) -> Judged:
    """The definitions, left to autograd."""
    logits = outputs @ weight.T
    p, q = reading.law[places], logits.softmax(-1)
    overlap = torch.minimum(p, q).sum(-1)
    share = loss.acceptance_weight if loss.kind == "mix" else 1 - (-loss.adaptivity * overlap.detach()).exp()
    losses = (1 - share) * -(p * q.log()).sum(-1) + share * (1 - overlap)
    if loss.kind == "log":
        losses = -(overlap / p.sum(-1)).log()
    return Judged((losses * scale).sum(), losses, overlap, logits.argmax(-1) == reading.favourite[places])


MIXES = [Loss("mix", share) for share in (0.0, 0.3, 1.0)]


@pytest.mark.parametrize("loss", [*MIXES, Loss("adaptive"), Loss("adaptive", adaptivity=0.5), Loss("log")])
def test_losses_and_their_gradients_are_those_of_the_definitions(loss: Loss) -> None:
    outputs, weight, *rest = situation()
    expected, found = (rule(outputs, weight, *rest, loss) for rule in (obvious, judge))
    for name in ("total", "losses", "overlaps", "hits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    gradients = [torch.autograd.grad(3 * judged.total, (outputs, weight)) for judged in (expected, found)]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("faintness", [1e-300, 0.0])
@pytest.mark.parametrize(("loss", "most"), [(Loss("mix", 0.5), 0.5), (Loss("adaptive"), 1.0), (Loss("log"), 8.0)])
def test_a_target_that_hardly_says_anything_the_head_can_draft_does_not_blow_up(
    loss: Loss, most: float, faintness: float
) -> None:
    outputs, weight, reading, places, scale = situation()
    faint = Reading(reading.features, reading.law * faintness, reading.favourite)
    judged = judge(outputs, weight, faint, places, scale, loss)
    judged.total.backward()
    assert judged.losses.max() < most + 1e-9
    assert outputs.grad.isfinite().all()
    assert outputs.grad.abs().max() < 1


def test_half_precision_products_come_close() -> None:
    outputs, weight, reading, places, scale = situation()
    exact = judge(outputs, weight, reading, places, scale, Loss("mix", 0.3))
    narrow = Reading(reading.features, reading.law.float(), reading.favourite)
    with torch.autocast("cpu", torch.bfloat16):
        found = judge(outputs.float(), weight.float(), narrow, places, scale.float(), Loss("mix", 0.3))
    torch.testing.assert_close(found.overlaps.double(), exact.overlaps, rtol=0, atol=0.02)
    gradients = [torch.autograd.grad(judged.total, outputs)[0] for judged in (exact, found)]
    assert torch.cosine_similarity(*(gradient.flatten() for gradient in gradients), dim=0) > 0.999
