"""How much of different trees a target accepts, on the same contexts.

Accepted lengths are exact expectations given the tree that was drafted: only the trees' own draws are random, and their
average over several draws is taken. All trees of a context are scored as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from eagle.clock import Clock
from eagle.drafters.eagle3.drafter import Drafter
from eagle.target.processors import processors_of
from eagle.target.target import Target
from eagle.target.text import Written
from eagle.tree.chance import chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES, Rule


@dataclass(frozen=True)
class Candidate:
    """A tree and how it is verified.

    Attributes:
        shape: of the tree, its ``total_token`` that of the largest size.
        rules: each of them is applied to the same trees; at temperature 0 ``greedy`` in place of each.
        sizes: values of ``total_token`` to look at, none above the shape's.
        draws: trees drafted in each context; of those without samples it is always one.
    """

    shape: TreeShape
    rules: tuple[Rule, ...]
    sizes: tuple[int, ...]
    draws: int = 1


@dataclass(frozen=True)
class Measured:
    """What a candidate did in one context.

    Attributes:
        lengths: expected accepted lengths, for each rule and each size.
        seconds: that drafting a tree took.
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
    return rule.expected_length(tree.best(total_token), target_probs[:total_token])


def union(trees: Sequence[DraftTree]) -> tuple[DraftTree, list[Tensor]]:
    """One tree, without laws, of all paths of trees with the same root.

    Returns:
        The tree, and for each of the trees (N,) int64 on the host: which nodes of it theirs are.
    """
    tokens, parents, depths = [int(trees[0].tokens[0])], [0], [0]
    child_of: dict[tuple[int, int], int] = {}
    places: list[Tensor] = []
    for tree in trees:
        place = [0]
        for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
            above = place[parent]
            node = child_of.setdefault((above, token), len(tokens))
            if node == len(tokens):
                tokens.append(token)
                parents.append(above)
                depths.append(depths[above] + 1)
            place.append(node)
        places.append(torch.tensor(place))
    whole = DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(depths), torch.zeros(len(tokens)))
    return whole, places


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

    Raises:
        InputError: a ``generation_config`` that cannot be honoured, or a text that crosses a change of the model's
            position encoding.

    Yields:
        For each context what each candidate did.
    """
    text_rule = RULES["greedy" if warper.greedy else "tokenwise"]
    processors = processors_of(target.model, prompt, length := prompt.shape[1] + contexts * every, stop_ids)
    target.refuse_crossing(prompt.shape[1], length + max(candidate.shape.depth for candidate in candidates) + 1)
    shapes = [candidate.shape.at(warper.temperature) for candidate in candidates]
    sources = [chance(shape, warper, generator) for shape in shapes]
    draws = [1 if source is None else candidate.draws for candidate, source in zip(candidates, sources, strict=True)]
    largest = max(shapes, key=lambda shape: shape.most_drafted)
    cache = target.new_cache(length + sum(n * shape.total_token for n, shape in zip(draws, shapes, strict=True)))
    head_cache = drafter.new_cache(length, largest)
    scores = target.prefill(prompt, cache)
    text, features = prompt[0].tolist(), scores.features
    tokens = text[1:]

    def law(tree: DraftTree, logits: Tensor) -> Tensor:
        return warper(logits if processors is None else processors(logits, tree, text))

    for step in range(contexts * every):
        last = root_only(text[-1])
        root = int(text_rule.verify(last, law(last, scores.logits), generator).next_token)
        if root in stop_ids or features is None:
            break
        tokens.append(root)
        text.append(root)
        if step % every == 0:
            committed, following = head_cache.committed, torch.tensor(tokens)
            written = None if processors is None else Written(processors, text)
            trees: list[list[DraftTree]] = []
            seconds: list[float] = []
            for shape, source, count in zip(shapes, sources, draws, strict=True):
                trees.append([])
                clock = Clock(target.device)
                for _ in range(count):
                    head_cache.committed = committed
                    trees[-1].append(
                        drafter.draft(features, following, root, head_cache, shape, shape.depth + 1, source, written)
                    )
                seconds.append(clock.lap() / count)
            whole, places = union([tree for drawn in trees for tree in drawn])
            probs = law(whole, target.score(whole, cache, features=False).logits)
            cache.keep(())
            place_of = iter(places)
            measured = []
            for candidate, drawn, spent in zip(candidates, trees, seconds, strict=True):
                scored = [(tree, probs[next(place_of).to(probs.device)]) for tree in drawn]
                lengths = [
                    [fmean(expected_length(rule, tree, p, size) for tree, p in scored) for size in candidate.sizes]
                    for rule in ([text_rule] * len(candidate.rules) if warper.greedy else candidate.rules)
                ]
                measured.append(Measured(lengths, spent))
            yield measured
            tokens, features = [], features[:0]
        scores = target.score(root_only(root), cache)
        cache.keep((0,))
        if scores.features is not None:
            features = torch.cat([features, scores.features])
    target.recycle(cache)
    drafter.recycle(head_cache)
