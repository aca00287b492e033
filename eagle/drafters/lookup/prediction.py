"""From what was seen before to what comes next: the probabilities that candidates are ranked by.

The longest match speaks first. A token that followed it c times out of T has the probability c / (T + a), where a is an
*escape*: what is left, a / (T + a), goes to the next match, as in prediction by partial matching (Cleary and Witten
1984). The less matches of a length are to be relied on, the larger their escape.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from eagle.drafters.lookup.database import Match


def escape(escapes: Sequence[float], length: int) -> float:
    """That of matches of 1, 2, ... tokens; of longer ones the last."""
    return escapes[min(length, len(escapes)) - 1]


def at_temperature(probabilities: Mapping[int, float], temperature: float) -> dict[int, float]:
    """Probabilities as they are in texts of a temperature: a text repeats itself the more, the lower that is.

    Log-odds are linear in those of all texts. Fitted to the tokens that ``grafted.MIXTURE`` was fitted to, of each
    temperature by itself.
    """
    heat = min(temperature, 1.0)
    bias, slope = 0.49 - 0.93 * heat, 1.41 - 0.26 * heat
    return {
        token: 1.0 / (1.0 + math.exp(-bias - slope * math.log(p / (1.0 - p)))) for token, p in probabilities.items()
    }


def predicted(matches: Iterable[Match], least: float, most: int) -> dict[int, float]:
    """Tokens that may come next, and their probabilities: the likeliest of each match before those of the next.

    Args:
        matches: the longest first.
        least: probability of a token that is worth mentioning.
        most: so many tokens.
    """
    found: dict[int, float] = {}
    left = 1.0
    for match in matches:
        scale = left / (sum(match.counts.values()) + match.escape)
        for token, count in match.counts.items():
            if len(found) == most or scale * count < least:
                break
            found.setdefault(token, scale * count)
        left = scale * match.escape
        if left < least:
            break
    return found
