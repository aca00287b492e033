"""How much of what different heads draft is accepted, in the same held-out texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tqdm import tqdm

from eagle.model.acceptance import Candidate, expected_lengths
from eagle.model.drafter import Drafter
from eagle.model.head import Eagle3Head
from eagle.model.method import DEFAULT_SAMPLING, Method
from eagle.model.sampling import Warper
from eagle.model.target import Target
from eagle.model.tree import TreeShape

EVERY = 8
TREES = {"EAGLE-3": TreeShape(17, 5, 10), "HSD": TreeShape(17, 5, 10, DEFAULT_SAMPLING)}


def accepted_lengths(
    target: Target, heads: Mapping[str, Eagle3Head], prompts: Sequence[list[int]], contexts: int, temperature: float
) -> dict[str, dict[str, float]]:
    """Mean expected accepted length of trees of 16 nodes, by head and method, in texts that the target writes.

    Args:
        target: the model, in its ordinary state.
        heads: by name.
        prompts: token ids.
        contexts: of each prompt, at most.
        temperature: of the texts and of verification.
    """
    candidates = [
        Candidate(shape, (Method.named(hsd=name == "HSD").rule,), (shape.total_token,)) for name, shape in TREES.items()
    ]
    found: dict[str, dict[str, float]] = {}
    with tqdm(total=len(heads) * len(prompts), unit="prompt", dynamic_ncols=True) as bar:
        for name, head in heads.items():
            lengths: dict[str, list[float]] = {tree: [] for tree in TREES}
            drafter = Drafter(head)
            for number, prompt in enumerate(prompts):
                # The same draws for every head; texts part only where trees have drawn differently often.
                generator = torch.Generator().manual_seed(number)
                for measured in expected_lengths(
                    target,
                    drafter,
                    torch.tensor([prompt], device=target.device),
                    candidates,
                    Warper(temperature),
                    contexts,
                    EVERY,
                    target.stop_ids,
                    generator,
                ):
                    for tree, values in zip(TREES, measured, strict=True):
                        lengths[tree].append(values.lengths[0][0])
                bar.update()
            found[name] = {tree: sum(values) / max(1, len(values)) for tree, values in lengths.items()}
    return found
