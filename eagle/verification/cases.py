"""Cases to enumerate: small targets and drafts, trees made by hand and trees grown by the drafters' own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.tree.chance import Chance
from eagle.tree.draft_tree import ONE_HOT, DraftTree, Laws
from eagle.tree.growth import grow
from eagle.tree.retrieval import Predict, Retrieval
from eagle.tree.shape import TreeShape
from eagle.verification.enumeration import Case, Choose, Path, Table


def same_everywhere(law: Sequence[float]) -> Table:
    """A model whose next token does not depend on what came before."""
    row = torch.tensor(law, dtype=torch.float64)
    return lambda path: row


def random_table(vocabulary: int, seed: int, zeros: float = 0.0, like: Table | None = None) -> Table:
    """A model with a random law behind each path.

    Args:
        vocabulary: V.
        seed: of its laws.
        zeros: share of the tokens with probability 0, as top_p and top_k leave them.
        like: another model, which this one then resembles.
    """
    known: dict[Path, Tensor] = {}

    def law(path: Path) -> Tensor:
        if path not in known:
            source = torch.Generator().manual_seed(hash((seed, path)) % 2**31)
            logits = 1.5 * torch.randn(vocabulary, generator=source, dtype=torch.float64)
            if like is not None:
                logits += 1.5 * like(path).clamp(min=1e-3).log()
            logits[torch.rand(vocabulary, generator=source) < zeros] = -torch.inf
            logits[int(torch.randint(vocabulary, (), generator=source))] = 0.0
            known[path] = logits.softmax(-1)
        return known[path]

    return law


@dataclass(frozen=True)
class Sketch:
    """A hand-made tree: for each child of a node how its token is found, and what hangs below it.

    Attributes:
        kind: ``top`` (the draft's most likely token that no elder sibling has), ``draw`` (from the draft's law without
            the elder siblings' tokens) or ``iid`` (from the draft's law, whatever its siblings have).
        children: of the child.
    """

    kind: str
    children: tuple[Sketch, ...] = ()


def chain(kind: str, length: int) -> tuple[Sketch, ...]:
    """A path of one kind."""
    return (Sketch(kind, chain(kind, length - 1)),) if length else ()


def drawn_tree(sketches: tuple[Sketch, ...], draft: Table, support: Sequence[int], choose: Choose) -> DraftTree:
    """Draft a sketched tree; a child that no token is left for is left out.

    Args:
        sketches: of the root's children.
        draft: laws over the target's vocabulary; what they give to tokens outside ``support`` is cut off.
        support: target ids of the draft vocabulary.
        choose: draws.
    """
    columns = torch.tensor(support)
    tokens, parents, depths, row_of, own_columns = [0], [0], [0], [ONE_HOT], [ONE_HOT]
    rows: list[Tensor] = []
    to_do: list[tuple[int, Path, tuple[Sketch, ...]]] = [(0, (), sketches)]
    while to_do:
        node, path, children = to_do.pop(0)
        law = draft(path)[columns]
        pool = law / law.sum() if law.sum() > 0 else law
        for sketch in children:
            weights = law if sketch.kind == "iid" else pool
            if weights.sum() == 0:
                continue
            column = int(weights.argmax()) if sketch.kind == "top" else int(choose(weights[None])[0])
            if sketch.kind == "top":
                row_of.append(ONE_HOT)
            else:
                row_of.append(len(rows))
                rows.append(weights / weights.sum())
            pool = pool.clone()
            pool[column] = 0.0
            tokens.append(support[column])
            parents.append(node)
            depths.append(depths[node] + 1)
            own_columns.append(column)
            to_do.append((len(tokens) - 1, (*path, support[column]), sketch.children))
    laws = Laws(torch.stack(rows), torch.tensor(row_of), torch.tensor(own_columns), columns) if rows else None
    return DraftTree(torch.tensor(tokens), torch.tensor(parents), torch.tensor(depths), torch.zeros(len(tokens)), laws)


def grown_tree(
    shape: TreeShape,
    levels: int,
    draft: Table,
    law: Callable[[Tensor], Tensor],
    support: Sequence[int],
    choose: Choose,
    predict: Predict | None = None,
) -> DraftTree:
    """Grow a tree with the drafter's own code, from a table in place of a head.

    Args:
        shape: bounds.
        levels: to grow.
        draft: laws over the target's vocabulary, the head's own at temperature 1.
        law: what samples are drawn from, see ``Chance.law``.
        support: target ids of the draft vocabulary.
        choose: draws.
        predict: looks up picked children from elsewhere, a level deeper too.
    """
    frontier: list[Path] = [()]
    ids = torch.tensor(support)

    def logits_of(paths: list[Path]) -> Tensor:
        return torch.stack([draft(path)[ids] for path in paths]).log()

    def expand(tokens: Tensor, parents: Tensor) -> Tensor:
        nonlocal frontier
        frontier = [(*frontier[parent], token) for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True)]
        return logits_of(frontier)

    retrieval = None
    if predict is not None:
        retrieval = Retrieval(predict, {token: column for column, token in enumerate(support)}, levels + 1)
    return grow(0, logits_of(frontier)[0], expand, ids, shape, levels, Chance(law, lambda _: choose), retrieval)


def sketched(
    name: str,
    sketches: tuple[Sketch, ...],
    target: Table,
    draft: Table,
    length: int,
    support: Sequence[int] | None = None,
) -> Case:
    """A case with a hand-made tree; ``support`` defaults to the whole vocabulary."""
    ids = range(len(target(()))) if support is None else support
    return Case(name, target, draft, lambda choose: drawn_tree(sketches, draft, ids, choose), length)


def grown(
    name: str,
    shape: TreeShape,
    target: Table,
    draft: Table,
    support: Sequence[int] | None = None,
    temperature: float = 1.0,
    predict: Predict | None = None,
) -> Case:
    """A case with a tree of the drafter's own code; the laws of its samples are the draft's at ``temperature``."""
    ids = range(len(target(()))) if support is None else support
    levels = shape.depth + 1

    def law(logits: Tensor) -> Tensor:
        return (logits / temperature).softmax(-1)

    def make(choose: Choose) -> DraftTree:
        return grown_tree(shape, levels, draft, law, ids, choose, predict)

    return Case(name, target, draft, make, levels + (1 if predict is None else 2))


TOY_TARGET, TOY_DRAFT = (1 / 3, 2 / 3), (2 / 3, 1 / 3)


def toy(length: int) -> Case:
    """The toy example of the block verification paper: one chain of ``length`` sampled tokens."""
    target, draft = same_everywhere(TOY_TARGET), same_everywhere(TOY_DRAFT)
    return sketched(f"toy, chain of {length}", chain("draw", length), target, draft, length + 1)
