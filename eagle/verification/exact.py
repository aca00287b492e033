"""Which rules are lossless, in a table: ``python -m eagle.verification.exact``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

from eagle.errors import InputError
from eagle.program import run_program
from eagle.tree.shape import Sampling, TreeShape
from eagle.verification import RULES
from eagle.verification.cases import Sketch, chain, grown, random_table, sketched, toy
from eagle.verification.enumeration import Case, exact, upper_bound

TOLERANCE = 1e-9


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
    found = [toy(length) for length in (1, 2, 3, 10)]
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
