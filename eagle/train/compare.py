"""How much of what a head drafts is accepted, in texts that its target writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm import tqdm

from eagle.decoding.method import DEFAULT_SAMPLING, Method
from eagle.drafters.eagle3.drafter import HeadDrafter
from eagle.drafters.eagle3.head import Eagle3Head
from eagle.target.target import Target
from eagle.tree.shape import TreeShape
from eagle.tree.warping import Warper
from eagle.tuning.acceptance import Candidate, expected_lengths

# Rounds from one context to the next.
EVERY = 4
METHODS = {"EAGLE-3": Method.named(hsd=False), "HSD": Method.named(hsd=True)}


def accepted_lengths(
    target: Target,
    head: Eagle3Head,
    prompts: Sequence[list[int]],
    contexts: int,
    temperature: float,
    nodes: int = 16,
    levels: int = 6,
    draws: int = 1,
) -> dict[str, list[list[float]]]:
    """Expected accepted lengths of both methods' trees, with a progress bar.

    Args:
        target: the model, in its ordinary state.
        head: drafts.
        prompts: token ids.
        contexts: of each prompt, at most, a few tokens apart.
        temperature: of the texts and of verification.
        nodes: of a tree, its root not counted.
        levels: of a tree below the root.
        draws: trees in each context, where they are sampled.

    Returns:
        For each method a list per prompt with an entry per context.
    """
    shape = TreeShape(nodes + 1, levels - 1, 10, DEFAULT_SAMPLING)
    drafter = HeadDrafter(head)
    candidates = [
        Candidate(drafter, method.shape(shape), (method.rule,), (shape.total_token,), draws)
        for method in METHODS.values()
    ]
    lengths: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    for number, prompt in enumerate(tqdm(prompts, unit="prompt", dynamic_ncols=True)):
        # The same draws for every head, until texts part.
        found = expected_lengths(
            target,
            torch.tensor([prompt], device=target.device),
            candidates,
            Warper(temperature),
            contexts,
            EVERY,
            target.stop_ids,
            torch.Generator().manual_seed(number),
        )
        measured = list(found)
        for place, of_method in enumerate(lengths.values()):
            of_method.append([each[place].lengths[0][0] for each in measured])
    return lengths
