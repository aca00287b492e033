"""The drafters of a model, and their trees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from eagle.decoding.method import (
    DRAFT_MODEL,
    HEAD,
    HEAD_AND_LOOKUP,
    HEAD_AND_SUFFIX,
    LOOKUP,
    PICKING,
    RECYCLING,
    SORTED,
    SUFFIX,
)
from eagle.decoding.speculation import SORTED_SHAPE, Offer, draft_model_shape, grafted_shape, lookup_shape
from eagle.decoding.stored_trees import NO_TREES, StoredTrees, form_of
from eagle.drafters.draft_model import load_draft_model
from eagle.drafters.eagle3.drafter import HeadDrafter, load_head_drafter
from eagle.drafters.grafted import GraftedDrafter
from eagle.drafters.lookup.drafter import DEFAULT_LOOKUP, LookupDrafter, LookupSettings, load_lookup
from eagle.drafters.lookup.retriever import Retriever
from eagle.drafters.lookup.suffix import SuffixDrafter
from eagle.drafters.recycling import RecyclingDrafter
from eagle.drafters.sorted.checkpoint import load_sorted, read_config
from eagle.drafters.sorted.drafter import SortedDrafter
from eagle.drafters.sorted.exits import SortedDraft
from eagle.folders import local_folder
from eagle.target.base import load_tokenizer
from eagle.target.target import Target
from eagle.tree.shape import AUTO_TOTAL_TOKEN, Sampling, TreeShape
from eagle.tuning import size as tune

EAGLE_BOUNDS = {"total_token": 60, "depth": 7, "top_k": 10}


@dataclass(frozen=True)
class Bounds:
    """What was said of the trees; None is a default.

    Attributes:
        total_token: nodes, the root included; -1 measures what is best on this machine.
        depth: expansions after the first level; of a draft model's trees the levels.
        top_k: children of an expanded node, and expanded nodes a level.
        sampling: of hybrid trees.
        paths: i.i.d. chains of the trees ``paths``.
        least: key of a node that is worth scoring.
        least_expanded: key of a node that is worth expanding.
    """

    total_token: int | None = None
    depth: int | None = None
    top_k: int | None = None
    sampling: Sampling | None = None
    paths: int | None = None
    least: float | None = None
    least_expanded: float | None = None

    @property
    def measured(self) -> bool:
        """Whether the size is to be measured."""
        return self.total_token == AUTO_TOTAL_TOKEN

    @property
    def given(self) -> dict[str, int]:
        """Of the first three those that were given."""
        total_token = tune.LARGEST if self.measured else self.total_token
        bounds = (("total_token", total_token), ("depth", self.depth), ("top_k", self.top_k))
        return {name: value for name, value in bounds if value is not None}

    @property
    def keys(self) -> dict[str, Any]:
        """``least`` and ``least_expanded``, those that were given."""
        bounds = (("least", self.least), ("least_expanded", self.least_expanded))
        return {name: value for name, value in bounds if value is not None}

    @property
    def of_a_head(self) -> TreeShape:
        """The trees of a head for which nothing is stored.

        Raises:
            InputError: a number out of its range.
        """
        return TreeShape(**EAGLE_BOUNDS | self.given, sampling=self.sampling, paths=self.paths, **self.keys)


@dataclass(frozen=True)
class Drafts:
    """What drafts for a target; None: there is none of it.

    Attributes:
        ea_model_path: directory or hub id of a head.
        draft_model_path: of a smaller model with the same tokenizer.
        sorted_draft: the target's own first layers, trained to draft.
        lookup: what is looked up.
    """

    ea_model_path: str | None = None
    draft_model_path: str | None = None
    sorted_draft: SortedDraft | None = None
    lookup: LookupSettings = DEFAULT_LOOKUP


def offers_of(
    drafts: Drafts, target: Target, base_model_path: str, quantize: str | None, bounds: Bounds, **hf_kwargs: Any
) -> dict[str, Offer]:
    """The drafters for a target, by name, with their trees.

    Args:
        drafts: what there is.
        target: the model.
        base_model_path: where its tokenizer is.
        quantize: as the target, see ``eagle.target.int8``.
        bounds: of the trees.
        **hf_kwargs: see ``load_base``, for a draft model.

    Raises:
        InputError: something cannot be loaded, or does not go with the target.
    """
    offers: dict[str, Offer] = {}
    if drafts.ea_model_path is not None:
        offers[HEAD] = head_offer(drafts.ea_model_path, target, quantize, bounds)
    if drafts.draft_model_path is not None:
        offers[DRAFT_MODEL] = draft_model_offer(
            drafts.draft_model_path, target, base_model_path, quantize, bounds, **hf_kwargs
        )
    if drafts.sorted_draft is not None:
        offers[SORTED] = sorted_offer(drafts.sorted_draft, target, quantize, bounds)
    return offers | without_a_model(drafts.lookup, base_model_path, offers.get(HEAD), bounds)


def head_offer(path: str, target: Target, quantize: str | None, bounds: Bounds) -> Offer:
    """A head, with the trees stored with it unless something was said of them.

    Raises:
        InputError: see ``load_head_drafter`` and ``StoredTrees.read``.
    """
    trees = NO_TREES
    if not bounds.given and bounds.sampling is None:
        stored = StoredTrees.read(local_folder(path, "the draft head"), form_of(target))
        trees = stored.each(lambda shape: replace(shape, **bounds.keys)) if bounds.keys else stored
    return _sized(Offer(load_head_drafter(path, target, quantize), bounds.of_a_head, trees), target, bounds)


def draft_model_offer(
    path: str, target: Target, base_model_path: str, quantize: str | None, bounds: Bounds, **hf_kwargs: Any
) -> Offer:
    """A separate draft model.

    Raises:
        InputError: see ``load_draft_model`` and ``draft_model_shape``.
    """
    shape = replace(draft_model_shape(**bounds.given, sampling=bounds.sampling, paths=bounds.paths), **bounds.keys)
    return _sized(Offer(load_draft_model(path, target, base_model_path, quantize, **hf_kwargs), shape), target, bounds)


def sorted_offer(draft: SortedDraft, target: Target, quantize: str | None, bounds: Bounds) -> Offer:
    """A sorted draft, with the trees and the exits stored with it unless something was said of them.

    Raises:
        InputError: see ``load_sorted``, ``SortedDraft.exits``, ``StoredTrees.read`` and ``TreeShape``.
    """
    kind: dict[str, Any] = {"sampling": bounds.sampling, "paths": bounds.paths}
    shape = replace(SORTED_SHAPE, **bounds.given | kind | bounds.keys)
    folder = local_folder(draft.folder, "the sorted draft")
    stored = StoredTrees.read(folder, form_of(target))
    free = not bounds.given and not any(kind.values())
    trees = stored.each(lambda shape: replace(shape, **bounds.keys)) if free else NO_TREES
    count = len(read_config(folder).exits)
    exits = draft.exits(count, stored.thresholds)
    # An exit that nobody may leave at is none, and what lies behind the last that is one is not loaded.
    used = sorted({stop for route in exits.routes(count) for stop in route}) if draft.exit is None else [draft.exit - 1]
    model = load_sorted(draft.folder, target, [number + 1 for number in used], quantize)
    return _sized(Offer(SortedDrafter(model, exits.among(used)), shape, trees), target, bounds)


def _sized(offer: Offer, target: Target, bounds: Bounds) -> Offer:
    if not bounds.measured:
        return offer
    return replace(offer, shape=tune.tuned_shape(target, offer.drafter, offer.shape))


def without_a_model(
    lookup: LookupSettings, base_model_path: str, head: Offer | None, bounds: Bounds
) -> dict[str, Offer]:
    """The drafters that look up what they draft, alone and beside a head.

    Args:
        lookup: what is looked up.
        base_model_path: where the tokenizer is.
        head: that there may be.
        bounds: of the trees beside a head.

    Raises:
        InputError: see ``load_lookup``.
    """
    files = lookup.model_db or lookup.corpus_db
    looking = load_lookup(lookup, load_tokenizer(base_model_path)) if files else LookupDrafter(lookup)
    retrievers: dict[str, Retriever] = {LOOKUP: looking, SUFFIX: SuffixDrafter()}
    drafters = {**retrievers, RECYCLING: RecyclingDrafter()}
    rows = {LOOKUP: lookup.rows}
    offers = {name: Offer(drafters[name], lookup_shape(name, rows=rows.get(name, 0))) for name in PICKING}
    if head is None or not isinstance(head.drafter, HeadDrafter):
        return offers
    size = None if bounds.measured else bounds.total_token
    grafted = partial(grafted_shape, total_token=size, least=bounds.least)
    for name, retriever in ((HEAD_AND_LOOKUP, retrievers[LOOKUP]), (HEAD_AND_SUFFIX, retrievers[SUFFIX])):
        offers[name] = Offer(GraftedDrafter(head.drafter, retriever), grafted(head.shape), head.trees.each(grafted))
    return offers
