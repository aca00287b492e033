"""One real round on a tiny pair, with every draw and every coin enumerated, and the law that it ought to have."""

from __future__ import annotations

import torch

from eagle.decoding.decoding import Decoding
from eagle.decoding.method import Method
from eagle.model.ea_model import EaModel
from eagle.target.processors import processors_of
from eagle.target.text import Text
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.verification import Plan, Rule
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


def round_distance(
    model: EaModel,
    tree: str,
    rule: Rule,
    sampling: tuple[float, float, int],
    first: int,
    drafted_with: Sampling = ONE_SAMPLE,
) -> float:
    """Total variation between the law of the three tokens behind the prompt and ``first``, begun by one real round,
    and the target's own; summed over every draw of the drafter and every fall of the rule's coins."""
    warper = Warper(*sampling)
    # Two levels, two expanded nodes, fewer nodes than candidates, so that pruning decides.
    shape = Method(tree, rule.name).shape(TreeShape(6, 1, 2, drafted_with))
    processors = processors_of(model.base_model, PROMPT, 200, model.stop_ids())
    text = Text(PROMPT, warper, 200, processors=processors)
    decoding = Decoding(model.target, (model.drafter, shape), text, forced(first))
    committed = decoding.head_cache.committed
    with torch.inference_mode():
        features = model.target.prefill(PROMPT, model.target.new_cache(64)).features[-1:]

    def make(choose: Choose) -> DraftTree:
        decoding.head_cache.committed = committed - 1
        source = Chance(decoding.chance.law, choose) if decoding.chance else None
        following = torch.tensor([first])
        return model.drafter.draft(
            features, following, first, decoding.head_cache, decoding.shape, 2, source, decoding.written
        )

    begun: dict[Path_, float] = {}
    with torch.inference_mode():
        for weight, drafted in every_draw(make):
            probs = decoding.law(drafted, model.target.score(drafted, decoding.cache).logits)
            decoding.cache.keep(())
            for (path, token), share in outcomes(drafted, rule.plan(drafted, probs)).items():
                begun[*path, token] = begun.get((*path, token), 0.0) + weight * share
    target = target_table(model, warper)

    def behind(path: Path_) -> torch.Tensor:
        return target((first, *path))

    return distance(text_law(behind, begun, 3), text_law(behind, {(): 1.0}, 3))


def forced(token: int) -> Rule:
    """A rule that accepts nothing and lets this token follow."""

    class Forced(Plan):
        def walk(self, toss):
            return 0

        def remaining(self, node):
            return torch.nn.functional.one_hot(torch.tensor(token), self.target_probs.shape[-1])

    return Rule("forced", Forced, lossless=False)
