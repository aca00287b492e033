"""Token-wise and greedy verification on hand-made trees, exactly."""

from __future__ import annotations

import pytest
import torch

from eagle.model.sampling import draw
from eagle.model.tree import DraftTree
from eagle.verification import greedy, tokenwise
from tests.verification.law import next_law, output_law

VOCAB = 5


def random_tree(generator: torch.Generator, nodes: int) -> DraftTree:
    tokens, parents, depths = [0], [0], [0]
    while len(tokens) < nodes:
        parent = int(torch.randint(len(tokens), (1,), generator=generator))
        token = int(torch.randint(VOCAB, (1,), generator=generator))
        taken = [tokens[node] for node in range(1, len(tokens)) if parents[node] == parent]
        if token not in taken and len(taken) < VOCAB:
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(depths), torch.zeros(nodes))


def random_probs(generator: torch.Generator, nodes: int) -> torch.Tensor:
    """Laws with zeros in them, as top_k and top_p leave."""
    logits = 2 * torch.randn(nodes, VOCAB, generator=generator, dtype=torch.float64)
    logits[torch.rand(nodes, VOCAB, generator=generator) < 0.3] = -torch.inf
    logits[:, 0] = logits[:, 0].clamp(min=-3.0)
    return logits.softmax(-1)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_emitted_first_has_the_target_law(seed: int) -> None:
    """The rule's own acceptance probabilities and residuals, summed over every outcome."""
    generator = torch.Generator().manual_seed(seed)
    nodes = int(torch.randint(1, 12, (1,), generator=generator))
    tree, probs = random_tree(generator, nodes), random_probs(generator, nodes)
    first = torch.zeros(VOCAB, dtype=torch.float64)
    for (path, token), weight in output_law(tree, probs).items():
        emitted = [*tree.tokens[list(path[1:])].tolist(), token]
        first[emitted[0]] += weight
    torch.testing.assert_close(first, probs[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_verdicts_are_drawn_from_that_law(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tree, probs = random_tree(generator, 8), random_probs(generator, 8)
    law = output_law(tree, probs)
    draws = 4000
    counts = dict.fromkeys(law, 0)
    for _ in range(draws):
        verdict = tokenwise.verify(tree, probs, generator)
        counts[verdict.path, int(verdict.next_token)] += 1
    statistic = sum(
        (count - draws * law[outcome]) ** 2 / (draws * law[outcome])
        for outcome, count in counts.items()
        if law[outcome] > 0
    )
    freedom = sum(1 for weight in law.values() if weight > 0) - 1
    # Mean `freedom`, variance 2 * freedom: six standard deviations over ten fixed seeds.
    assert statistic < freedom + 6 * (2 * freedom + 1) ** 0.5


def test_a_broken_residual_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact test fails when rejected tokens stay in the law."""
    monkeypatch.setattr(tokenwise, "residual", lambda probs, rejected: probs)
    tree = DraftTree(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 1]), torch.zeros(2))
    probs = torch.tensor([[0.3, 0.5, 0.1, 0.05, 0.05]] * 2, dtype=torch.float64)
    law = next_law(tree, probs)
    assert (law - probs[0]).abs().sum() / 2 > 0.2


def test_certain_children_leave_no_residual_to_draw_from() -> None:
    """The drafted token holds all mass: it is accepted, and a residual of it alone falls back to the law."""
    tree = DraftTree(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0, 1]), torch.zeros(2))
    probs = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    for seed in range(20):
        verdict = tokenwise.verify(tree, probs, torch.Generator().manual_seed(seed))
        assert verdict.path == (0, 1)
        assert int(verdict.next_token) == 2
    torch.testing.assert_close(tokenwise.residual(probs[0], torch.tensor([1])), probs[0])


def test_greedy_follows_the_largest_entries() -> None:
    tree = DraftTree(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 1, 2]), torch.zeros(4))
    logits = torch.tensor([[0.0, 1, 5, 2], [0, 0, 0, 9], [1, 2, 3, 4], [7, 0, 0, 0]])
    verdict = greedy.verify(tree, logits)
    assert verdict.path == (0, 2, 3)
    assert verdict.accept_length == 2
    assert int(verdict.next_token) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_named(bad: float) -> None:
    tree = DraftTree(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), torch.zeros(1))
    logits = torch.tensor([[0.0, bad, 1.0]])
    with pytest.raises(ValueError, match="NaN or infinity"):
        greedy.verify(tree, logits)
    with pytest.raises(ValueError, match="NaN or infinity"):
        tokenwise.verify(tree, logits.softmax(-1), torch.Generator())


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-53])
def test_draw_never_returns_an_impossible_token(uniform: float) -> None:
    weights = torch.tensor([0.0, 0.2, 0.0, 0.1, 0.0])
    assert weights[draw(weights, uniform)] > 0
