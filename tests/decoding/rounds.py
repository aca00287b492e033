"""Real rounds and real generations of a tiny model, with every draw and every coin enumerated, and the law that they
ought to have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.decoding.speculation import Speculation
from eagle.model.ea_model import EaModel
from eagle.target.processors import processors_of
from eagle.target.text import Text
from eagle.tree.chance import Chance, chance
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import Plan, Rule, Verdict
from eagle.verification.enumeration import Choose, Table, distance, every_draw, outcomes, text_law
from eagle.verification.enumeration import Path as Path_

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
SAMPLING = [(0.7, 0.0, 0), (1.0, 0.0, 0), (1.5, 0.0, 0), (1.0, 0.8, 0), (1.0, 0.0, 3), (0.7, 0.8, 3)]


def target_table(model: EaModel, warper: Warper, prompt: torch.Tensor = PROMPT) -> Table:
    """What the stock model says after a prompt and a path of tokens, through the transformers warpers."""
    known: dict[Path_, torch.Tensor] = {}
    processors = processors_of(model.base_model, prompt, 200, model.stop_ids())

    def law(path: Path_) -> torch.Tensor:
        if path not in known:
            with torch.inference_mode():
                ids = torch.tensor([[*prompt[0].tolist(), *path]])
                logits = model.base_model(ids).logits[:, -1]
                known[path] = warper(logits if processors is None else processors.of_texts(logits, ids))[0]
        return known[path]

    return law


ONE_SAMPLE = Sampling(threshold=0.15, rho=0.7, samples=1)


def round_distances(
    model: EaModel,
    tree: str,
    rules: Sequence[Rule],
    sampling: tuple[float, float, int],
    first: int,
    drafted_with: Sampling = ONE_SAMPLE,
    drafter: str = "eagle3",
    paths: int = 2,
    levels: int = 2,
) -> list[float]:
    """Of each rule the total variation between the law of the three tokens behind the prompt and ``first``, begun by
    one real round, and the target's own; summed over every draw of the drafter and every fall of the rule's coins."""
    warper = Warper(*sampling)
    # Two levels, two expanded nodes, fewer nodes than candidates, so that pruning decides.
    shape = Method(tree, rules[0].name).shape(TreeShape(6, levels - 1, 2, drafted_with, paths))
    processors = processors_of(model.base_model, PROMPT, 200, model.stop_ids())
    text = Text(PROMPT, warper, 200, processors=processors)
    decoding = Decoding(model.target, Speculation(model.offers[drafter].drafter, shape, forced(first)), text)

    def make(choose: Choose) -> DraftTree:
        source = Chance(decoding.chance.law, lambda _: choose) if decoding.chance else None
        return decoding.drafting.draft(decoding.shape, levels, source)

    begun: list[dict[Path_, float]] = [{} for _ in rules]
    with torch.inference_mode():
        for weight, drafted in every_draw(make):
            scored, places = drafted.scored()
            probs = decoding.law(drafted, model.target.score(scored, decoding.cache).at(places).logits)
            decoding.cache.keep(())
            for rule, law in zip(rules, begun, strict=True):
                for (path, token), share in outcomes(drafted, rule.plan(drafted, probs)).items():
                    law[*path, token] = law.get((*path, token), 0.0) + weight * share
    target = target_table(model, warper)

    def behind(path: Path_) -> torch.Tensor:
        return target((first, *path))

    own = text_law(behind, {(): 1.0}, 3)
    return [distance(text_law(behind, law, 3), own) for law in begun]


def round_distance(model: EaModel, tree: str, rule: Rule, *how: Any, **more: Any) -> float:
    """``round_distances`` of one rule."""
    return round_distances(model, tree, [rule], *how, **more)[0]


def forced(token: int) -> Rule:
    """A rule that accepts nothing and lets this token follow."""

    class Forced(Plan):
        def walk(self, toss):
            return 0

        def remaining(self, node):
            return torch.nn.functional.one_hot(torch.tensor(token), self.target_probs.shape[-1])

    return Rule("forced", Forced, lossless=False)


class Dice:
    """Every way in which a program's draws can go, one run after the other."""

    def __init__(self) -> None:
        self._to_follow: list[tuple[int, ...]] = [()]
        self.probability = 1.0

    def runs(self):
        """A run for each: yields nothing, and the draws are made with ``one_of`` in between."""
        while self._to_follow:
            self._script = self._to_follow.pop()
            self._made: list[int] = []
            self.probability = 1.0
            yield

    def one_of(self, weights: list[float]) -> int:
        """Draw an index in proportion to its weight."""
        possible = [index for index, weight in enumerate(weights) if weight > 0]
        place = len(self._made)
        if place >= len(self._script):
            self._to_follow += [(*self._made, other) for other in possible[1:]]
        self._made.append(self._script[place] if place < len(self._script) else possible[0])
        self.probability *= weights[self._made[-1]] / math.fsum(weights)
        return self._made[-1]

    def choose(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Choose``."""
        columns = [self.one_of(row) if sum(row) > 0 else 0 for row in weights.tolist()]
        return torch.tensor(columns)[:, None], weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Diced(Rule):
    """A rule whose coins and next tokens are drawn with dice."""

    dice: Dice | None = None

    def verify(self, tree: DraftTree, target_probs: torch.Tensor, generator: torch.Generator | None = None) -> Verdict:
        plan, dice = self.plan(tree, target_probs), self.dice
        node = plan.walk(lambda p: dice.one_of([min(1.0, p), max(0.0, 1.0 - p)]) == 0)
        return Verdict(tree.path_to(node), torch.tensor(dice.one_of(plan.remaining(node).tolist())))


def generation_distance(
    model: EaModel, method: str, shape: TreeShape, length: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[float, float]:
    """Total variation between the law of the first tokens of real generations at temperature 1 and the target's own,
    over every way that their draws can go; and the expected number of rounds they take.

    Args:
        model: decodes.
        method: how, as ``Method.parse`` reads it.
        shape: bounds of the trees.
        length: tokens, over which the generations are followed.
        monkeypatch: lets drafts be drawn with dice.
    """
    dice, parsed, warper = Dice(), Method.parse(method), Warper(1.0)
    prompt = torch.tensor([[1, 0, 1, 1, 0]])
    rule = Diced(**vars(parsed.rule), dice=dice)
    with monkeypatch.context() as patch:
        patch.setattr(
            "eagle.decoding.decoding.chance",
            lambda *how: (drawn := chance(*how)) and replace(drawn, choices=lambda _: dice.choose),
        )
        chosen = Speculation(model.offers[parsed.drafter].drafter, parsed.shape(shape), rule)
        decoding, law, rounds = None, {}, 0.0
        for _ in dice.runs():
            if decoding is None:
                decoding = Decoding(model.target, chosen, Text(prompt, warper, 200))
            else:
                decoding.restart(None)
            while decoding.new_tokens < length:
                decoding.step()
            path = tuple(decoding.tokens[5 : 5 + length])
            law[path] = law.get(path, 0.0) + dice.probability
            rounds += dice.probability * len(decoding.info["tree_time"])
        decoding.stop()
    expected = text_law(target_table(model, warper, prompt), {(): 1.0}, length)
    return distance(law, expected), rounds
