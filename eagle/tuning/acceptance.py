"""How much of different trees a target accepts, in the same contexts, which are where rounds begin.

Accepted lengths are exact expectations given the tree that was drafted: only the trees' own draws are random, and their
average over several draws is taken. All trees of a context are scored as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    """Let candidates write a text of the target's, round by round, and draft with all of them where rounds begin.

    Contexts are not spread evenly over the text: a round goes over what is easy to draft and begins behind a token that
    often was not drafted, so in evenly spaced contexts all would accept more than in a round. As the methods' rounds
    begin in different places, those before each context are of a candidate drawn at random, each of any of its sizes.

    Args:
        target: the model.
        prompt: (1, n) int64.
        candidates: what to compare; each one's first rule verifies the rounds that it writes.
        warper: of the text, and of the laws.
        contexts: how many at most; fewer if the text ends.
        every: rounds from one context to the next.
        stop_ids: end the text.
        generator: source of randomness.

    Raises:
        InputError: a ``generation_config`` that cannot be honoured, or a text that crosses a change of the model's
            position encoding.

    Yields:
        For each context what each candidate did.
    """
    text = _Written(target, prompt, candidates, warper, contexts * every, stop_ids, generator)
    for _ in range(contexts):
        if text.ended:
            break
        drafts = text.drafted(range(len(candidates)))
        yield [text.measured(place, each) for place, each in drafts.items()]
        turn = _one_of(len(candidates), generator)
        text.emit(turn, drafts[turn])
        for _ in range(every - 1):
            if not text.ended:
                text.emit(turn, text.drafted([turn])[turn])
    text.end()


def _one_of(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator, device=generator.device))


@dataclass(frozen=True)
class _Drafted:
    """What a candidate drafted in a context.

    Attributes:
        trees: one for each draw.
        probs: of each tree the target's probabilities of the token after each node.
        seconds: that drafting one of them took.
    """

    trees: list[DraftTree]
    probs: list[Tensor]
    seconds: float


class _Written:
    """A text that candidates write; see ``expected_lengths``.

    Args:
        target: the model.
        prompt: (1, n) int64.
        candidates: that may write it.
        warper: of the text, and of the laws.
        rounds: of it at most.
        stop_ids: end it.
        generator: source of randomness.
    """

    def __init__(
        self,
        target: Target,
        prompt: Tensor,
        candidates: Sequence[Candidate],
        warper: Warper,
        rounds: int,
        stop_ids: frozenset[int],
        generator: torch.Generator,
    ) -> None:
        self._target, self._candidates, self._warper, self._generator = target, candidates, warper, generator
        self._stop_ids = stop_ids
        self._shapes = [candidate.shape.at(warper.temperature) for candidate in candidates]
        self._chances = [chance(shape, warper, generator) for shape in self._shapes]
        self._draws = [
            1 if source is None else candidate.draws
            for candidate, source in zip(candidates, self._chances, strict=True)
        ]
        largest_tree = max(shape.total_token for shape in self._shapes)
        # A round emits no more than there are nodes, the root's token being there and another one drawn.
        length = prompt.shape[1] + 1 + rounds * largest_tree
        self._processors = processors_of(target.model, prompt, length, stop_ids)
        target.refuse_crossing(prompt.shape[1], length + largest_tree)
        nodes = sum(count * shape.total_token for count, shape in zip(self._draws, self._shapes, strict=True))
        self._cache = target.new_cache(length + nodes)
        self._tokens: list[int] = prompt[0].tolist()
        text = Text(prompt, warper, length, stop_ids, generator, self._processors)
        largest: dict[Drafter, TreeShape] = {}
        for candidate, shape in zip(candidates, self._shapes, strict=True):
            known = largest.setdefault(candidate.drafter, shape)
            largest[candidate.drafter] = max(known, shape, key=lambda one: one.most_drafted)
        self._draftings = {drafter: drafter.begin(text, self._tokens, shape) for drafter, shape in largest.items()}
        self._features = any(drafter.reads is Reads.FEATURES for drafter in self._draftings)
        prompt_scores = target.prefill(prompt, self._cache, self._features)
        for drafting in self._draftings.values():
            drafting.read(prompt_scores)
        self.ended = False
        root, tokenwise = root_only(self._tokens[-1]), self._rule(RULES["tokenwise"])
        self._write([int(tokenwise.verify(root, self._law(root, prompt_scores.logits), generator).next_token)])

    def _rule(self, rule: Rule) -> Rule:
        return RULES["greedy"] if self._warper.greedy else rule

    def _law(self, tree: DraftTree, logits: Tensor) -> Tensor:
        return self._warper(logits if self._processors is None else self._processors(logits, tree, self._tokens))

    def _write(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._tokens.append(token)
            self.ended |= token in self._stop_ids

    def drafted(self, which: Iterable[int]) -> dict[int, _Drafted]:
        """What some of the candidates draft here, by their places; all trees are scored as one."""
        trees: dict[int, list[DraftTree]] = {}
        seconds: dict[int, float] = {}
        for place in which:
            drafting, shape = self._draftings[self._candidates[place].drafter], self._shapes[place]
            clock, count = Clock(self._target.device), self._draws[place]
            trees[place] = [drafting.draft(shape, shape.total_token - 1, self._chances[place]) for _ in range(count)]
            seconds[place] = clock.lap() / count
        whole, places = union([tree for drawn in trees.values() for tree in drawn])
        probs = self._law(whole, self._target.score(whole, self._cache, features=False).logits)
        self._cache.keep(())
        rows = iter(places)
        return {
            place: _Drafted(drawn, [probs[next(rows).to(probs.device)] for _ in drawn], seconds[place])
            for place, drawn in trees.items()
        }

    def measured(self, place: int, drafts: _Drafted) -> Measured:
        """What a candidate did."""
        candidate = self._candidates[place]
        scored = list(zip(drafts.trees, drafts.probs, strict=True))
        lengths = [
            [
                fmean(expected_length(self._rule(rule), tree, probs, size) for tree, probs in scored)
                for size in candidate.sizes
            ]
            for rule in candidate.rules
        ]
        return Measured(lengths, drafts.seconds, fmean(float(len(tree.scored()[0])) for tree in drafts.trees))

    def emit(self, place: int, drafts: _Drafted) -> None:
        """Write what a round of a candidate emits."""
        candidate, generator = self._candidates[place], self._generator
        # Where rounds begin depends on how large the trees are, so each size has its turn.
        size = candidate.sizes[_one_of(len(candidate.sizes), generator)]
        tree = drafts.trees[0].best(size)
        verdict = self._rule(candidate.rules[0]).verify(tree, drafts.probs[0][:size], generator)
        for token in [*tree.tokens[list(verdict.path[1:])].tolist(), int(verdict.next_token)]:
            root = root_only(self._tokens[-1])
            scores = self._target.score(root, self._cache, self._features)
            self._cache.keep((0,))
            for drafting in self._draftings.values():
                drafting.learn(root, scores, (0,))
            self._write([token])

    def end(self) -> None:
        """Give the memory back."""
        self._target.recycle(self._cache)
        for drafting in self._draftings.values():
            drafting.end()
