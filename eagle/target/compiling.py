"""Compiling a target, and finding out on the spot that it says the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch

from eagle import assets
from eagle.errors import InputError
from eagle.folders import first_line
from eagle.target.attention import GROUPED_SDPA
from eagle.target.check import refuse_wrong_scores
from eagle.target.compiled import CompiledLayers, decoder_layers
from eagle.target.packed import join_weights
from eagle.target.recorded import RecordedForwards
from eagle.target.target import Scores, Target
from eagle.tree.draft_tree import DraftTree, root_only

AUTO, ON, OFF = COMPILE = ("auto", "on", "off")
# A prompt, a tree and a view of sizes that nothing in a model has by itself.
PROMPT, NODES = 5, 13

Compiled = TypeVar("Compiled")


def compile_target(target: Target) -> None:
    """Run the decoder layers of a target compiled from now on, where this machine can; else say why not.

    It takes seconds where the artefacts are on disk already, and up to some minutes where they are not.

    Args:
        target: any; one that is compiled stays as it is.
    """
    if target.compiled is None:
        what = f"{type(target.model).__name__} ({target.dtype}, {target.device.type})"
        target.compiled = built_or_said(f"compiling {what}", lambda: _compiled_layers(target))
        if target.compiled is not None and target.device.type == "cuda":
            target.recorded = built_or_said(f"recording forwards of {what}", lambda: recorded_forwards(target))


def built_or_said(what: str, build: Callable[[], Compiled]) -> Compiled | None:
    """What was built by compiling; None where that failed, with a line on standard error that says why.

    Args:
        what: is done, for people.
        build: does all of it.
    """
    assets.say(f"{what} ...")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(assets.cache_dir() / "compiled"))
    try:
        return build()
    except Exception as error:  # of many types: no compiler, a layer it cannot read, a device it has no kernels for
        why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"
        assets.say(f"it goes on without: {why}")
        return None


def recorded_forwards(target: Target) -> RecordedForwards[Scores]:
    """Let a target with compiled layers score trees with recorded forwards, and find out that they say the same."""
    recorded = target.recorded = RecordedForwards(target.score_recorded, target.device)
    try:
        refuse_wrong_scores(target)
    except Exception:
        target.recorded = None
        raise
    return recorded


def _compiled_layers(target: Target) -> CompiledLayers:
    _install_hooks(target)
    of_model = decoder_layers(target.model, len(target.windows))
    for layer in of_model:
        join_weights(layer)
    layers = target.compiled = CompiledLayers(of_model)
    try:
        _compile(target, layers)
        refuse_wrong_scores(target)
    except Exception:
        target.compiled = None
        raise
    return layers


@torch.inference_mode()
def _install_hooks(target: Target) -> None:
    """Let transformers put its hooks in place, as it does when somebody asks for hidden states for the first time."""
    if target.config._attn_implementation != GROUPED_SDPA:
        raise InputError(f"attn_implementation={target.config._attn_implementation!r} is not compiled, 'sdpa' is")
    target.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=target.device), output_hidden_states=True)


@torch.inference_mode()
def _compile(target: Target, layers: CompiledLayers) -> None:
    """Score a root and a tree, as of sizes that will vary."""
    cache = target.new_cache(PROMPT + NODES)
    target.prefill(torch.zeros(1, PROMPT, dtype=torch.int64), cache, features=False)
    nodes = torch.arange(NODES)
    chain = DraftTree(torch.zeros_like(nodes), (nodes - 1).clamp(min=0), nodes, torch.zeros(NODES))
    for tree in (root_only(0), chain):
        width = cache.view_masked(len(tree))
        with layers.with_varying(width, *([NODES] if tree is chain else [])):
            target.score(tree, cache, features=False)
        cache.keep(())
    target.recycle(cache)
