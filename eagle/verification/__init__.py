"""Verification rules: what of a drafted tree is accepted, and which token follows.

A rule is a file here, knows nothing of models or drafters, and is admitted by ``eagle.verification.exact``.
"""

from eagle.verification import blockwise, greedy, hsd, hsd_published, naive_hsd, tokenwise
from eagle.verification.verdict import Plan, Rule, Verdict

RULES: dict[str, Rule] = {
    module.RULE.name: module.RULE for module in (greedy, tokenwise, blockwise, naive_hsd, hsd, hsd_published)
}

__all__ = ["RULES", "Plan", "Rule", "Verdict"]
