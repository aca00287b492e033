"""How much of different trees a target accepts, on the same contexts.

Accepted lengths are exact expectations given the tree that was drafted: only the trees' own draws are random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.model.clock import Clock
from eagle.model.drafter import Drafter, chance
from eagle.model.sampling import Warper, draw
from eagle.model.target import Target
from eagle.model.tree import DraftTree, TreeShape, root_only
from eagle.verification import Rule


@dataclass(frozen=True)
class Candidate:
    """A tree and how it is verified.

    Attributes:
        shape: of the tree, its ``total_token`` that of the largest size.
        rules: each of them is applied to the same trees.
        sizes: values of ``total_token`` to look at, none above the shape's.
    """

    shape: TreeShape
    rules: tuple[Rule, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """What a candidate did in one context.

    Attributes:
        lengths: expected accepted lengths, for each rule and each size.
        seconds: that drafting took.
    """

    lengths: list[list[float]]
    seconds: float


def expected_length(rule: Rule, tree: DraftTree, target_probs: Tensor, total_token: int) -> float:
    """Expected accepted length of what growth with the same draws keeps of a tree for a smaller ``total_token``.

    Args:
        rule: verifies it.
        tree: N nodes.
        target_probs: (N, V) probabilities of the token after each node.
        total_token: of the smaller tree; above N it is the tree itself.
    """
    smaller, kept = tree.best(total_token)
    return rule.expected_length(smaller, target_probs[kept.to(target_probs.device)])


@torch.inference_mode()
def expected_lengths(
    target: Target,
    drafter: Drafter,
    prompt: Tensor,
    candidates: Sequence[Candidate],
    warper: Warper,
    contexts: int,
    every: int,
    stop_ids: frozenset[int],
    generator: torch.Generator,
) -> Iterator[list[Measured]]:
    """Let the target write a text, and at every few tokens of it draft with all candidates.

    Args:
        target: the model.
        drafter: its drafter.
        prompt: (1, n) int64.
        candidates: what to compare.
        warper: of the text, and of the laws.
        contexts: how many at most; fewer if the text ends.
        every: tokens from one context to the next.
        stop_ids: end the text.
        generator: source of randomness.

    Yields:
        For each context what each candidate did.
    """
    shapes = [candidate.shape.at(warper.temperature) for candidate in candidates]
    length = prompt.shape[1] + contexts * every
    largest = max(shapes, key=lambda shape: shape.most_drafted)
    cache = target.new_cache(length + max(shape.total_token for shape in shapes))
    head_cache = drafter.new_cache(length, largest)
    scores = target.prefill(prompt, cache)
    tokens, features = prompt[0, 1:].tolist(), scores.features
    for step in range(contexts * every):
        root = int(draw(warper(scores.logits)[0], float(torch.rand((), generator=generator, dtype=torch.float64))))
        if root in stop_ids or features is None:
            break
        tokens.append(root)
        if step % every == 0:
            committed, following = head_cache.committed, torch.tensor(tokens)
            measured = []
            for candidate, shape in zip(candidates, shapes, strict=True):
                head_cache.committed = committed
                source = chance(shape, warper, generator)
                clock = Clock(target.device)
                tree = drafter.draft(features, following, root, head_cache, shape, shape.depth + 1, source)
                seconds = clock.lap()
                probs = warper(target.score(tree, cache, features=False).logits)
                cache.keep(())
                lengths = [
                    [expected_length(rule, tree, probs, size) for size in candidate.sizes] for rule in candidate.rules
                ]
                measured.append(Measured(lengths, seconds))
            yield measured
            tokens, features = [], features[:0]
        scores = target.score(root_only(root), cache)
        cache.keep((0,))
        if scores.features is not None:
            features = torch.cat([features, scores.features])
    target.recycle(cache)
    drafter.recycle(head_cache)
