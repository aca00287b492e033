"""Which drafter and which tree go with which verification rule, and what that is called."""

from __future__ import annotations

from dataclasses import dataclass, replace

from eagle.errors import InputError
from eagle.tree.shape import CHAIN, DETERMINISTIC, HYBRID, PATHS, TREES, Sampling, TreeShape
from eagle.verification import RULES, Rule

DEFAULT_SAMPLING = Sampling(threshold=0.05, rho=0.5, samples=2, early=0.05, early_nodes=12)
DEFAULT_PATHS = 11
EAGLE3, HSD = "eagle3", "hsd"
HEAD, DRAFT_MODEL, LOOKUP, SUFFIX, RECYCLING = ("eagle3", "draft", "lookup", "suffix", "recycling")
SORTED = "sorted"
HEAD_AND_LOOKUP, HEAD_AND_SUFFIX = GRAFTED = (f"{HEAD}+{LOOKUP}", f"{HEAD}+{SUFFIX}")
"""Heads in whose trees there is what was looked up."""
PICKING = (LOOKUP, SUFFIX, RECYCLING)
"""Drafters that draw nothing: they have no laws, and their trees are deterministic."""
DRAFTERS = (HEAD, DRAFT_MODEL, SORTED, *PICKING, *GRAFTED)
VERIFIERS = tuple(name for name in RULES if name != "greedy")
"""Rules that can be asked for by name."""


@dataclass(frozen=True)
class Method:
    """A kind of tree, the rule that verifies it, and what drafts it.

    Attributes:
        tree: one of ``TREES``.
        verifier: name of the rule.
        drafter: one of ``DRAFTERS``.
    """

    tree: str
    verifier: str
    drafter: str = HEAD

    @classmethod
    def named(
        cls, hsd: bool, verifier: str | None = None, tree: str | None = None, drafter: str | None = None
    ) -> Method:
        """What ``hsd`` means, or what it is overridden with.

        Args:
            hsd: hierarchical verification of hybrid trees; false: EAGLE-3.
            verifier: name of another rule.
            tree: another kind of tree.
            drafter: name of another drafter than the head; with one that draws nothing trees are deterministic.

        Raises:
            InputError: an unknown name, or a rule that does not go with the tree.
        """
        drafter = drafter or HEAD
        usual = HYBRID if hsd and drafter not in PICKING else DETERMINISTIC
        method = cls(tree or usual, verifier or ("hsd" if hsd else "tokenwise"), drafter)
        if method.drafter not in DRAFTERS:
            raise InputError(f"drafter must be one of {', '.join(DRAFTERS)}, not {method.drafter!r}")
        if method.tree not in TREES:
            raise InputError(f"tree must be one of {', '.join(TREES)}, not {method.tree!r}")
        if method.drafter in PICKING and method.tree != DETERMINISTIC:
            raise InputError(
                f"the drafter {method.drafter!r} draws no tokens, so its trees are deterministic, not {method.tree}: "
                f"{method.drafter}/{DETERMINISTIC}:tokenwise"
            )
        if method.drafter in GRAFTED and method.tree not in (DETERMINISTIC, HYBRID):
            raise InputError(
                f"the drafter {method.drafter!r} picks what it looks up, so its trees are {DETERMINISTIC} or {HYBRID}, "
                f"not {method.tree}"
            )
        if method.verifier not in VERIFIERS:
            greedy = "; temperature 0 uses it by itself, and above it would not sample"
            why = greedy if method.verifier == "greedy" else ""
            raise InputError(f"verifier must be one of {', '.join(VERIFIERS)}, not {method.verifier!r}{why}")
        if method.rule.chains_only and method.tree != CHAIN:
            raise InputError(f"verifier {method.verifier!r} is for a single chain: it needs tree='chain'")
        if method.verifier == "hsd_published" and method.tree == HYBRID:
            raise InputError(
                "verifier 'hsd_published' needs tree='deterministic', tree='chain' or tree='paths', as published"
            )
        return method

    @classmethod
    def parse(cls, name: str) -> Method:
        """``eagle3``, ``hsd``, or a tree and a rule with a colon between them, ``chain:blockwise``; in front of them,
        with a slash, the drafter if it is not the head: ``draft/chain:blockwise``.

        Raises:
            InputError: neither, or as ``named``.
        """
        if name in (EAGLE3, HSD):
            return cls.named(hsd=name == HSD)
        drafter, _, rest = name.rpartition("/")
        tree, _, verifier = rest.partition(":")
        if not (tree and verifier):
            raise InputError(
                f"a method is {EAGLE3}, {HSD} or [DRAFTER/]TREE:RULE (chain:blockwise or draft/paths:tokenwise, for "
                f"instance), not {name!r}"
            )
        return cls.named(hsd=False, verifier=verifier, tree=tree, drafter=drafter or None)

    @property
    def name(self) -> str:
        """What ``parse`` understands: a tree and a rule, with the drafter in front if it is not the head."""
        drafter = "" if self.drafter == HEAD else f"{self.drafter}/"
        return f"{drafter}{self.tree}:{self.verifier}"

    def record(self) -> dict[str, str]:
        """The method in a run's settings; the head goes without saying."""
        drafter = {} if self.drafter == HEAD else {"drafter": self.drafter}
        return {"tree": self.tree, "verifier": self.verifier, **drafter}

    def at(self, temperature: float) -> Method:
        """The method that this is at a temperature: at 0 nothing is sampled, and HSD is EAGLE-3."""
        if temperature == 0 and self.tree == HYBRID:
            return Method.named(hsd=False, drafter=self.drafter)
        return self

    @property
    def rule(self) -> Rule:
        """The verification rule."""
        return RULES[self.verifier]

    def shape(self, shape: TreeShape) -> TreeShape:
        """The shape of this method's trees.

        Args:
            shape: its bounds, and what sampled children of a hybrid tree are like.
        """
        if self.tree == DETERMINISTIC:
            return replace(shape, sampling=None, paths=None)
        if self.tree == CHAIN:
            return TreeShape.chain(min(shape.depth + 1, shape.total_token - 1))
        if self.tree == PATHS:
            return TreeShape.several_paths(shape.paths or DEFAULT_PATHS, shape.depth + 1)
        shape = replace(shape, paths=None)
        return shape if shape.sampling else replace(shape, sampling=DEFAULT_SAMPLING)
