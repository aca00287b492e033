"""Exact output laws of verification rules: how a rule is admitted. ``python -m eagle.verification.exact`` prints a
table.

On a small vocabulary every draw of the drafter is enumerated, every tree so drawn is pushed through every fall of the
rule's coins, and what is emitted is completed with the target's own law to a fixed length. What comes out is the
exact law of the text, to compare with the target's, and the exact expected accepted length. Nothing is sampled.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle.errors import InputError
from eagle.model.tree import ONE_HOT, Chance, DraftTree, Laws, Sampling, TreeShape, grow
from eagle.program import run_program
from eagle.verification import RULES, Rule
from eagle.verification.naive_hsd import modified_target
from eagle.verification.verdict import Plan, endings

Path = tuple[int, ...]
Table = Callable[[Path], Tensor]
"""(V,) float64 law of the token after a path of tokens below the root."""
Choose = Callable[[Tensor], Tensor]
"""See ``Chance.choose``."""

TOLERANCE = 1e-9


@dataclass(frozen=True)
class Case:
    """A target, a draft, and a way to draft a tree.

    Attributes:
        name: for the table.
        target: the target's laws.
        draft: the draft's laws.
        make: drafts a tree, drawing with what it is given.
        length: tokens of text to compare; at least the tree's levels + 1.
    """

    name: str
    target: Table
    draft: Table
    make: Callable[[Choose], DraftTree]
    length: int


@dataclass(frozen=True)
class Exact:
    """What a rule does in a case.

    Attributes:
        expected_length: expected accepted length of a round.
        distance: total variation between the law of the text and the target's.
    """

    expected_length: float
    distance: float


def every_draw(make: Callable[[Choose], DraftTree]) -> list[tuple[float, DraftTree]]:
    """Run a drafter once for each way its draws can go; returns the different trees and their probabilities."""
    found: dict[tuple[str, str, str], tuple[float, DraftTree]] = {}
    to_follow: list[tuple[int, ...]] = [()]
    while to_follow:
        script = to_follow.pop()
        chosen: list[int] = []
        probability = 1.0

        def choose(weights: Tensor, script: tuple[int, ...] = script, chosen: list[int] = chosen) -> Tensor:
            nonlocal probability
            columns = []
            for row in weights.tolist():
                possible = [column for column, weight in enumerate(row) if weight > 0]
                if not possible:
                    columns.append(0)
                    continue
                place = len(chosen)
                if place >= len(script):
                    to_follow.extend((*chosen, other) for other in possible[1:])
                chosen.append(script[place] if place < len(script) else possible[0])
                columns.append(chosen[-1])
                probability *= row[chosen[-1]] / math.fsum(row)
            return torch.tensor(columns)

        tree = make(choose)
        laws = tree.laws
        of_samples = "" if laws is None else str((laws.row_of.tolist(), laws.rows.tolist()))
        same = (str(tree.tokens.tolist()), str(tree.parents.tolist()), of_samples)
        found[same] = (found[same][0] + probability if same in found else probability, tree)
    return list(found.values())


def paths_of(tree: DraftTree) -> list[Path]:
    """The tokens from below the root down to each node."""
    paths: list[Path] = [()]
    for token, parent in zip(tree.tokens.tolist()[1:], tree.parents.tolist()[1:], strict=True):
        paths.append((*paths[parent], token))
    return paths


def exact(case: Case, rules: Sequence[Rule]) -> dict[str, Exact]:
    """What each rule does in a case, by enumeration.

    Args:
        case: its trees need to be small: their number is exponential in the draws.
        rules: to look at.
    """
    trees = every_draw(case.make)
    wanted = text_law(case.target, {(): 1.0}, case.length)
    results = {}
    for rule in rules:
        begun: dict[Path, float] = {}
        accepted = 0.0
        for weight, tree in trees:
            plan = rule.plan(tree, torch.stack([case.target(path) for path in paths_of(tree)]))
            for (path, token), share in outcomes(tree, plan).items():
                accepted += weight * share * len(path)
                for text, rest in _continued(case, rule, tree, path, token).items():
                    begun[text] = begun.get(text, 0.0) + weight * share * rest
        results[rule.name] = Exact(accepted, distance(text_law(case.target, begun, case.length), wanted))
    return results


def outcomes(tree: DraftTree, plan: Plan) -> dict[tuple[Path, int], float]:
    """Probability of each accepted path of tokens and the next token, of those that can come about."""
    paths = paths_of(tree)
    law: dict[tuple[Path, int], float] = {}
    for node, chance in endings(plan):
        following = plan.remaining(node)
        for token, share in enumerate((following / following.sum()).tolist()):
            if chance * share > 0:
                law[paths[node], token] = law.get((paths[node], token), 0.0) + chance * share
    return law


def text_law(target: Table, begun: dict[Path, float], length: int) -> dict[Path, float]:
    """The law of texts of ``length`` tokens: beginnings and their probabilities, completed with the target."""
    law: dict[Path, float] = {}
    for path, weight in begun.items():
        law[path[:length]] = law.get(path[:length], 0.0) + weight
    for short in range(length):
        for path in [path for path in law if len(path) == short]:
            weight = law.pop(path)
            for token, p in enumerate(target(path).tolist()):
                if weight * p > 0:
                    law[*path, token] = law.get((*path, token), 0.0) + weight * p
    return law


def distance(one: dict[Path, float], other: dict[Path, float]) -> float:
    """Total variation distance of two laws."""
    return 0.5 * math.fsum(abs(one.get(path, 0.0) - other.get(path, 0.0)) for path in one.keys() | other.keys())


def _continued(case: Case, rule: Rule, tree: DraftTree, path: Path, token: int) -> dict[Path, float]:
    """What follows a round's last token before the target takes over: nothing, but for ``naive_hsd``, which carries its
    modified target on to the length of the chain."""
    text = (*path, token)
    if rule.name != "naive_hsd" or len(path) == tree.draft_length - 1:
        return {text: 1.0}
    r, done = 1.0, {text: 1.0}
    for place in range(len(text)):
        p, q = float(case.target(text[:place])[text[place]]), float(case.draft(text[:place])[text[place]])
        r = r * p / q if q > 0 else math.inf
    ratios = {text: r}
    for length in range(len(text), tree.draft_length - 1):
        for begun in [begun for begun in done if len(begun) == length]:
            weight, r = done.pop(begun), ratios[begun]
            if weight == 0:
                continue
            p_row, q_row = case.target(begun), case.draft(begun)
            for following, share in enumerate(modified_target(p_row, q_row, r).tolist()):
                longer = (*begun, following)
                done[longer] = weight * share
                q = float(q_row[following])
                ratios[longer] = r * float(p_row[following]) / q if q > 0 else math.inf
    return done


def upper_bound(case: Case) -> float | None:
    """The most that any lossless rule can accept of a deterministic tree: the sum over its nodes of the target's
    probability of the path to them. None for other trees."""
    trees = every_draw(case.make)
    if len(trees) > 1 or trees[0][1].laws is not None:
        return None
    paths = paths_of(trees[0][1])[1:]
    return math.fsum(
        math.prod(float(case.target(path[:place])[path[place]]) for place in range(len(path))) for path in paths
    )


# ---------------------------------------------------------------------------------------------------------------------
# Cases
# ---------------------------------------------------------------------------------------------------------------------


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
    shape: TreeShape, levels: int, draft: Table, law: Callable[[Tensor], Tensor], support: Sequence[int], choose: Choose
) -> DraftTree:
    """Grow a tree with the drafter's own code, from a table in place of a head.

    Args:
        shape: bounds.
        levels: to grow.
        draft: laws over the target's vocabulary, the head's own at temperature 1.
        law: what samples are drawn from, see ``Chance.law``.
        support: target ids of the draft vocabulary.
        choose: draws.
    """
    frontier: list[Path] = [()]
    ids = torch.tensor(support)

    def logits_of(paths: list[Path]) -> Tensor:
        return torch.stack([draft(path)[ids] for path in paths]).log()

    def expand(tokens: Tensor, parents: Tensor) -> Tensor:
        nonlocal frontier
        frontier = [
            (*frontier[parent], support[token]) for token, parent in zip(tokens.tolist(), parents.tolist(), strict=True)
        ]
        return logits_of(frontier)

    return grow(0, logits_of(frontier)[0], expand, ids, shape, levels, Chance(law, choose))


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
) -> Case:
    """A case with a tree of the drafter's own code; the laws of its samples are the draft's at ``temperature``."""
    ids = range(len(target(()))) if support is None else support
    levels = shape.depth + 1

    def law(logits: Tensor) -> Tensor:
        return (logits / temperature).softmax(-1)

    return Case(name, target, draft, lambda choose: grown_tree(shape, levels, draft, law, ids, choose), levels + 1)


TOY_TARGET, TOY_DRAFT = (1 / 3, 2 / 3), (2 / 3, 1 / 3)


def toy(length: int) -> Case:
    """The toy example of the block verification paper: one chain of ``length`` sampled tokens."""
    target, draft = same_everywhere(TOY_TARGET), same_everywhere(TOY_DRAFT)
    return sketched(f"toy, chain of {length}", chain("draw", length), target, draft, length + 1)


def cases() -> list[Case]:
    """The cases that are printed."""
    p, sparse = random_table(4, seed=1), random_table(4, seed=2, zeros=0.4)
    q, holes = random_table(4, seed=3, like=p), random_table(4, seed=4, zeros=0.4, like=p)
    p3 = random_table(3, seed=5)
    q3 = random_table(3, seed=6, like=p3)
    two = (Sketch("draw", chain("draw", 1)), Sketch("draw", chain("draw", 1)))
    ragged = (Sketch("top", (Sketch("draw"), Sketch("top", chain("draw", 1)))), Sketch("draw"), Sketch("top"))
    hybrid = (Sketch("draw", (Sketch("draw"), Sketch("top"))), Sketch("top", (Sketch("top"), Sketch("draw"))))
    tops = (Sketch("top", (Sketch("top"), Sketch("top"))), Sketch("top", chain("top", 1)), Sketch("top"))
    below = (Sketch("top", chain("top", 1)), Sketch("top", (Sketch("top"), Sketch("top"))))
    deep = (Sketch("top", below), Sketch("top", below))
    found = [toy(length) for length in range(1, 11)]
    for name, target, draft in (("", p, q), (", sparse p", sparse, q), (", holes in q", p, holes), (", p = q", p, p)):
        found += [
            sketched(f"chain of 3{name}", chain("draw", 3), target, draft, 4),
            sketched(f"2-ary, sampled{name}", two, target, draft, 3),
            sketched(f"2-ary, i.i.d.{name}", (Sketch("iid"), Sketch("iid")), target, draft, 2),
            sketched(f"ragged{name}", ragged, target, draft, 4),
            sketched(f"hybrid{name}", hybrid, target, draft, 3),
            sketched(f"deterministic{name}", tops, target, draft, 3),
            sketched(f"deterministic, deep{name}", deep, target, draft, 4),
        ]
    found.append(sketched("hybrid, small draft vocabulary", hybrid, p, q, 3, support=(0, 2, 3)))
    for samples in (1, 2, 3):
        shape = TreeShape(total_token=4 + samples, depth=2, top_k=2, sampling=Sampling(0.2, 0.5, samples))
        found.append(grown(f"grown, pruned, {samples} samples", shape, p3, q3))
    return found


def table() -> tuple[str, bool]:
    """Lines of the table, and whether every lossless rule proved so in all the cases that it is for."""
    lossless = [rule for rule in RULES.values() if rule.lossless and rule.name != "greedy"]
    rules = [*lossless, *(rule for rule in RULES.values() if not rule.lossless)]
    names = [rule.name for rule in rules]
    lines = [
        "expected accepted length / total variation distance of the text from the target's",
        "  ".join(["case".ljust(32), *(name.rjust(18) for name in names), "upper bound".rjust(12)]),
    ]
    fine, shown = True, set()
    for case in cases():
        cells, bound = [], upper_bound(case)
        for rule in rules:
            try:
                result = exact(case, [rule])[rule.name]
            except InputError:
                cells.append("-")
                continue
            fine &= result.distance < TOLERANCE or not rule.lossless
            shown.add(rule.name)
            cells.append(f"{result.expected_length:.4f} / {result.distance:.0e}")
        limit = "-" if bound is None else f"{bound:.4f}"
        lines.append("  ".join([case.name.ljust(32), *(cell.rjust(18) for cell in cells), limit.rjust(12)]))
    # A rule that refuses every case is not admitted for that.
    return "\n".join(lines), fine and shown.issuperset(rule.name for rule in lossless)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 if a rule that claims to be lossless is not."""
    fine = True

    def program(arguments: Sequence[str] | None) -> None:
        nonlocal fine
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text, fine = table()
        print(text)
        print(f"every lossless rule is within {TOLERANCE:g}" if fine else "A RULE THAT CLAIMS TO BE LOSSLESS IS NOT")

    return run_program(program, argv) or int(not fine)


if __name__ == "__main__":
    sys.exit(main())
