"""Several chains drawn from the same place, each by itself: the multi-draft of the HSD paper's GSM8K experiments.

Source: SpecInfer (Miao et al. 2023) and Zhou et al. (arXiv 2601.05724), whose K drafts of one text are verified path by
path. As a tree they are the trie of the paths. The children of a node come in the order of the paths, each drawn from
the same law *with* replacement. A path that draws what an elder one has drawn goes on below the elder's node, but its
draw stays in the tree as a leaf of its own: behind its rejected elder it has weight 0, and yet its rejection takes its
law once more from what is left of the target's. Leaving it out would be another law than that of the draws.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eagle.errors import InputError
from eagle.tree.chance import Chance
from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws


def draw_paths(
    root: int,
    root_logits: Tensor,
    expand: Callable[[Tensor, Tensor], Tensor],
    support: Tensor,
    paths: int,
    levels: int,
    chance: Chance,
) -> DraftTree:
    """Draw ``paths`` chains of ``levels`` tokens below ``root``; tokens that several share are expanded once.

    Nodes are numbered path by path, from the root down: a draw depends on those before it in its own path alone, so
    this is an order in which they could have been decided on (docs/hsd.md). One transfer to the host a level: how many
    different nodes a level has decides how many are expanded.

    Args:
        root: last committed token, a target id.
        root_logits: (D,) logits of what follows the root.
        expand: runs the drafter's model on a level, see ``growth.Expand``.
        support: (D,) int64, the target id of each draft id.
        paths: K.
        levels: of each, at least 1.
        chance: what tokens are drawn from, and how.

    Raises:
        InputError: logits with NaN.
    """
    laws, choose = [chance.of(root_logits[None])], chance.choices(paths * levels)
    above = [0] * paths
    columns: list[list[int]] = []
    entries: list[list[int]] = []
    for level in range(levels):
        rows = torch.tensor(above, device=root_logits.device)
        drawn, _ = choose(laws[-1][rows])
        columns.append(drawn[:, 0].tolist())
        entry_of: dict[tuple[int, int], int] = {}
        entries.append([entry_of.setdefault(draw, len(entry_of)) for draw in zip(above, columns[-1], strict=True)])
        above = entries[-1]
        if level + 1 < levels:
            level_rows, level_columns = zip(*entry_of, strict=True)
            following = expand(
                support[torch.tensor(level_columns, device=root_logits.device)],
                torch.tensor(level_rows, device=root_logits.device),
            )
            laws.append(chance.of(following))
    starts = [0]
    for rows_of_level in laws:
        starts.append(starts[-1] + len(rows_of_level))
    tree_columns, parents, depths, row_of, twins = [ONE_HOT], [0], [0], [ONE_HOT], [0]
    node_of: dict[tuple[int, int], int] = {}
    for path in range(paths):
        parent, entry = 0, 0
        for level in range(levels):
            node = len(parents)
            tree_columns.append(columns[level][path])
            parents.append(parent)
            depths.append(level + 1)
            row_of.append(starts[level] + entry)
            entry = entries[level][path]
            parent = node_of.setdefault((level, entry), node)
            twins.append(parent)
    rows_of_all = torch.cat(laws)
    if bool(rows_of_all.isnan().any()):
        raise InputError("the drafter's logits contain NaN; check its weights, or load the pair in a wider dtype")
    targets = support[torch.tensor(tree_columns[1:], device=support.device)].tolist()
    repeated = any(twin != node for node, twin in enumerate(twins))
    return DraftTree(
        tokens=torch.tensor([root, *targets]),
        parents=torch.tensor(parents),
        depths=torch.tensor(depths),
        keys=torch.zeros(len(parents), dtype=laws[0].dtype),
        laws=Laws(rows_of_all, torch.tensor(row_of), torch.tensor(tree_columns), support),
        twins=torch.tensor(twins) if repeated else None,
    )
