"""Random trees of any laws, and random target laws, for tests of rules."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws


def random_law(generator: torch.Generator, size: int, zeros: float = 0.3) -> Tensor:
    """(size,) float64 probabilities, some of them 0 as top_k and top_p leave them."""
    weights = torch.rand(size, generator=generator, dtype=torch.float64) + 1e-3
    weights[torch.rand(size, generator=generator) < zeros] = 0.0
    weights[int(torch.randint(size, (), generator=generator))] += 0.1
    return weights / weights.sum()


def random_probs(generator: torch.Generator, nodes: int, vocabulary: int) -> Tensor:
    """(nodes, vocabulary) target laws."""
    return torch.stack([random_law(generator, vocabulary) for _ in range(nodes)])


def random_tree(generator: torch.Generator, nodes: int, vocabulary: int, sampled: float = 0.5) -> DraftTree:
    """A tree of random shape whose nodes are picked or drawn, siblings with the same token among them."""
    support = torch.randperm(vocabulary, generator=generator)[: max(1, vocabulary - 1)]
    tokens, parents, depths, row_of, columns = [0], [0], [0], [ONE_HOT], [ONE_HOT]
    rows: list[Tensor] = []
    for node in range(1, nodes):
        parents.append(int(torch.randint(node, (), generator=generator)))
        depths.append(depths[parents[-1]] + 1)
        if torch.rand((), generator=generator) < sampled:
            row_of.append(len(rows))
            rows.append(random_law(generator, len(support)))
            columns.append(int(torch.multinomial(rows[-1], 1, generator=generator)))
            tokens.append(int(support[columns[-1]]))
        else:
            row_of.append(ONE_HOT)
            tokens.append(int(torch.randint(vocabulary, (), generator=generator)))
            where = (support == tokens[-1]).nonzero().flatten().tolist()
            columns.append(where[0] if where else ONE_HOT)
    laws = Laws(torch.stack(rows), torch.tensor(row_of), torch.tensor(columns), support) if rows else None
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(depths), torch.zeros(nodes), laws)


def chain_tree(tokens: list[int], laws: list[Tensor]) -> DraftTree:
    """A chain below the root, each token drawn from its law over the whole vocabulary."""
    ids = torch.arange(len(tokens) + 1)
    return DraftTree(
        torch.tensor([0, *tokens]),
        (ids - 1).clamp(min=0),
        ids,
        torch.zeros(len(ids)),
        Laws(torch.stack(laws), ids - 1, torch.tensor([ONE_HOT, *tokens]), torch.arange(len(laws[0]))),
    )


def picked_tree(tokens: list[int], parents: list[int]) -> DraftTree:
    """A tree of picked nodes."""
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(depths), torch.zeros(len(tokens)))
