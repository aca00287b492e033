"""Which tree goes with which verification rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

from eagle.errors import InputError
from eagle.tree.shape import CHAIN, DETERMINISTIC, HYBRID, TREES, Sampling, TreeShape
from eagle.verification import RULES, Rule

DEFAULT_SAMPLING = Sampling(threshold=0.05, rho=0.5, samples=2)
CHAIN_SAMPLING = Sampling(threshold=None, rho=1.0, samples=1)
EAGLE3, HSD = "eagle3", "hsd"
VERIFIERS = tuple(name for name in RULES if name not in ("greedy", "naive_hsd"))
"""Rules that can be asked for by name."""


@dataclass(frozen=True)
class Method:
    """A kind of tree, and the rule that verifies it.

    Attributes:
        tree: one of ``TREES``.
        verifier: name of the rule.
    """

    tree: str
    verifier: str

    @classmethod
    def named(cls, hsd: bool, verifier: str | None = None, tree: str | None = None) -> Method:
        """What ``hsd`` means, or what it is overridden with.

        Args:
            hsd: hierarchical verification of hybrid trees; false: EAGLE-3.
            verifier: name of another rule.
            tree: another kind of tree.

        Raises:
            InputError: an unknown name, or a rule that does not go with the tree.
        """
        method = cls(tree or (HYBRID if hsd else DETERMINISTIC), verifier or ("hsd" if hsd else "tokenwise"))
        if method.tree not in TREES:
            raise InputError(f"tree must be one of {', '.join(TREES)}, not {method.tree!r}")
        if method.verifier not in VERIFIERS:
            why = {
                "greedy": "; temperature 0 uses it by itself, and above it would not sample",
                "naive_hsd": "; it needs the draft's law behind tokens that were never drafted, "
                "so it exists in eagle.simulation and eagle.verification.exact only",
            }.get(method.verifier, "")
            raise InputError(f"verifier must be one of {', '.join(VERIFIERS)}, not {method.verifier!r}{why}")
        if method.rule.chains_only and method.tree != CHAIN:
            raise InputError(f"verifier {method.verifier!r} is for a single chain: it needs tree='chain'")
        if method.verifier == "hsd_published" and method.tree == HYBRID:
            raise InputError("verifier 'hsd_published' needs tree='deterministic' or tree='chain', as published")
        return method

    @classmethod
    def parse(cls, name: str) -> Method:
        """``eagle3``, ``hsd``, or a tree and a rule with a colon between them: ``chain:blockwise``.

        Raises:
            InputError: neither, or as ``named``.
        """
        if name in (EAGLE3, HSD):
            return cls.named(hsd=name == HSD)
        tree, _, verifier = name.partition(":")
        if not (tree and verifier):
            raise InputError(f"a method is {EAGLE3}, {HSD} or TREE:RULE (chain:blockwise, for instance), not {name!r}")
        return cls.named(hsd=False, verifier=verifier, tree=tree)

    def at(self, temperature: float) -> Method:
        """The method that this is at a temperature: at 0 nothing is sampled, and HSD is EAGLE-3."""
        return Method.named(hsd=False) if temperature == 0 and self.tree == HYBRID else self

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
            return replace(shape, sampling=None)
        if self.tree == CHAIN:
            length = min(shape.depth + 1, shape.total_token - 1)
            return TreeShape(length + 1, length - 1, 1, CHAIN_SAMPLING)
        return shape if shape.sampling else replace(shape, sampling=DEFAULT_SAMPLING)
