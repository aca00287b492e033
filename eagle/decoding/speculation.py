"""With what a text is decoded: one drafter, one shape of trees, one rule, and the one place that decides which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from eagle.checks import whole_number
from eagle.decoding.method import DRAFT_MODEL, GRAFTED, HEAD, RECYCLING, SORTED, Method
from eagle.decoding.stored_trees import NO_TREES, StoredTrees
from eagle.drafters.drafter import Drafter, NoDrafter
from eagle.errors import InputError
from eagle.tree.shape import Sampling, TreeShape
from eagle.verification import RULES, Rule


@dataclass(frozen=True)
class Speculation:
    """What a text is decoded with.

    Attributes:
        drafter: drafts the trees.
        shape: of the trees; ``TreeShape.at`` makes of it the one for the text's temperature.
        rule: verifies them; at temperature 0 it is always ``greedy``.
    """

    drafter: Drafter
    shape: TreeShape
    rule: Rule


AUTOREGRESSIVE = Speculation(NoDrafter(), TreeShape(2, 0, 1), RULES["tokenwise"])
"""Nothing is drafted: every round is a token of the target's."""


@dataclass(frozen=True)
class Offer:
    """A drafter that a model has, and its trees.

    Attributes:
        drafter: it.
        shape: of the trees for which nothing was stored; what it says of samples holds for hybrid trees.
        trees: stored, by kind and temperature; they come before ``shape``.
    """

    drafter: Drafter
    shape: TreeShape
    trees: StoredTrees = NO_TREES

    def shape_for(self, method: Method, temperature: float) -> TreeShape:
        """The trees of a method in texts of a temperature."""
        return method.shape(self.trees.at(temperature, method.at(temperature).tree, self.shape))


def draft_model_shape(
    total_token: int | None = None,
    depth: int | None = None,
    top_k: int | None = None,
    sampling: Sampling | None = None,
    paths: int | None = None,
) -> TreeShape:
    """The trees of a draft model, for which nothing is stored; None is a default.

    Args:
        total_token: nodes, the root included (60).
        depth: levels, the length of a chain (10): the gamma of the published experiments, not EAGLE's count of
            expansions after the first level.
        top_k: children of an expanded node, and expanded nodes a level (10).
        sampling: of hybrid trees.
        paths: of the trees of several chains.

    Raises:
        InputError: a number out of its range.
    """
    levels = 10 if depth is None else depth
    if whole_number("depth", levels) < 1:
        raise InputError(f"depth is the length of what a draft model drafts: 1 or more, not {levels}")
    return TreeShape(60 if total_token is None else total_token, levels - 1, top_k or 10, sampling, paths)


SORTED_SHAPE = TreeShape(total_token=60, depth=4, top_k=10)
"""Trees of a sorted draft, as published (arXiv 2407.01955)."""


def lookup_shape(
    drafter: str,
    total_token: int | None = None,
    depth: int | None = None,
    top_k: int | None = None,
    least: float | None = None,
    rows: int = 0,
) -> TreeShape:
    """The trees of look-up, of which only what is likely enough is scored; None is a default.

    Args:
        drafter: one of ``PICKING``.
        total_token: nodes at most, the root included (16).
        depth: levels (12).
        top_k: tokens behind each node (4).
        least: probability of a path that is worth scoring (0.1; of recycling, whose probabilities are averages, 0.03).
        rows: nodes of lookahead rows, beside the others.

    Raises:
        InputError: a number out of its range.
    """
    levels = 12 if depth is None else depth
    if whole_number("depth", levels) < 1:
        raise InputError(f"depth is the length of what is looked up: 1 or more, not {levels}")
    least = (0.03 if drafter == RECYCLING else 0.1) if least is None else least
    return TreeShape((16 if total_token is None else total_token) + rows, levels - 1, top_k or 4, least=least)


def grafted_shape(shape: TreeShape, total_token: int | None = None, least: float | None = None) -> TreeShape:
    """Of a head's trees those with look-up in them: as large as what is found is worth; None is a default.

    Args:
        shape: of the head's trees.
        total_token: nodes at most, the root included (16, or the head's).
        least: key of a node that is worth scoring (0.1); of trees with samples, whose keys say less, the head's own
            number stays, and beyond it those of 0.15.
    """
    size = total_token or max(16, shape.total_token)
    if shape.sampling is None:
        return replace(shape, total_token=size, least=least or 0.1)
    return replace(shape, total_token=size, least=least or 0.15, fewest=min(shape.total_token, size))


def speculation(
    offers: Mapping[str, Offer], method: Method | None, temperature: float, shape: TreeShape | None = None
) -> Speculation:
    """With what a text is decoded.

    Args:
        offers: the drafters there are, by name.
        method: which of them, which trees and which rule; None decodes autoregressively.
        temperature: of the text.
        shape: of the trees, taken as it is; None: what was stored or set for the drafter.

    Raises:
        InputError: a drafter that is not there, or one that cannot do what the rule needs.
    """
    if method is None:
        return AUTOREGRESSIVE
    offer = offer_of(offers, method)
    return Speculation(offer.drafter, shape or offer.shape_for(method, temperature), method.rule)


def offer_of(offers: Mapping[str, Offer], method: Method) -> Offer:
    """The drafter that a method names.

    Raises:
        InputError: it is not there, or cannot do what the rule needs.
    """
    offer = offers.get(method.drafter)
    if offer is None:
        head = "ea_model_path (--ea-model-path)"
        how = {
            DRAFT_MODEL: "draft_model_path (--draft-model-path)",
            SORTED: "sorted_draft (--sorted-model-path)",
            **dict.fromkeys((HEAD, *GRAFTED), head),
        }
        raise InputError(
            f"the method {method.name} needs the drafter {method.drafter!r}, and this model has "
            f"{', '.join(sorted(offers)) or 'none'}; give {how[method.drafter]}"
        )
    if method.rule.follows_every_prefix and not offer.drafter.knows_every_prefix:
        raise InputError(
            f"the rule {method.verifier!r} needs the drafter's law behind tokens that were never drafted, which only a "
            f"separate draft model has: draft/chain:{method.verifier}"
        )
    return offer
