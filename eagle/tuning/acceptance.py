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
from eagle.drafters.drafter import Drafter, Reads
from eagle.target.processors import processors_of
from eagle.target.target import Target
from eagle.target.text import Text
from eagle.tree.chance import chance
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from eagle.verification import RULES, Rule


@dataclass(frozen=True)
class Candidate:
    """A tree, what drafts it and how it is verified.

    Attributes:
        drafter: drafts it.
        shape: of the tree, its ``total_token`` that of the largest size.
        rules: each of them is applied to the same trees; at temperature 0 ``greedy`` in place of each.
        sizes: values of ``total_token`` to look at, none above the shape's.
        draws: trees drafted in each context; of those without samples it is always one.
    """

    drafter: Drafter
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
        scored: nodes of the largest size that the target has to score, the root included.
    """

    lengths: list[list[float]]
    seconds: float
    scored: float


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
    length = prompt.shape[1] + contexts * every
    processors = processors_of(target.model, prompt, length, stop_ids)
    target.refuse_crossing(prompt.shape[1], length + max(candidate.shape.total_token for candidate in candidates))
    shapes = [candidate.shape.at(warper.temperature) for candidate in candidates]
    sources = [chance(shape, warper, generator) for shape in shapes]
    draws = [1 if source is None else candidate.draws for candidate, source in zip(candidates, sources, strict=True)]
    cache = target.new_cache(length + sum(n * shape.total_token for n, shape in zip(draws, shapes, strict=True)))
    tokens: list[int] = prompt[0].tolist()
    text = Text(prompt, warper, length, stop_ids, generator, processors)
    largest: dict[Drafter, TreeShape] = {}
    for candidate, shape in zip(candidates, shapes, strict=True):
        known = largest.setdefault(candidate.drafter, shape)
        largest[candidate.drafter] = max(known, shape, key=lambda one: one.most_drafted)
    draftings = {drafter: drafter.begin(text, tokens, shape) for drafter, shape in largest.items()}
    features = any(drafter.reads is Reads.FEATURES for drafter in draftings)
    scores = target.prefill(prompt, cache, features)
    for drafting in draftings.values():
        drafting.read(scores)

    def law(tree: DraftTree, logits: Tensor) -> Tensor:
        return warper(logits if processors is None else processors(logits, tree, tokens))

    for step in range(contexts * every):
        last = root_only(tokens[-1])
        root = int(text_rule.verify(last, law(last, scores.logits), generator).next_token)
        if root in stop_ids:
            break
        tokens.append(root)
        if step % every == 0:
            trees: list[list[DraftTree]] = []
            seconds: list[float] = []
            for candidate, shape, source, count in zip(candidates, shapes, sources, draws, strict=True):
                clock = Clock(target.device)
                drafting = draftings[candidate.drafter]
                trees.append([drafting.draft(shape, shape.total_token - 1, source) for _ in range(count)])
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
                measured.append(Measured(lengths, spent, fmean(float(len(tree.scored()[0])) for tree in drawn)))
            yield measured
        scores = target.score(root_only(root), cache, features)
        cache.keep((0,))
        for drafting in draftings.values():
            drafting.learn(root_only(root), scores, (0,))
    target.recycle(cache)
    for drafting in draftings.values():
        drafting.end()
