"""Verification rules: what of a drafted tree is accepted, and which token follows.

Every rule has the signature ``verify(tree, target_probs, generator) -> Verdict`` and touches no model.
"""

from eagle.verification import greedy, tokenwise
from eagle.verification.verdict import Rule, Verdict

RULES: dict[str, Rule] = {"greedy": greedy.verify, "tokenwise": tokenwise.verify}

__all__ = ["RULES", "Rule", "Verdict"]
