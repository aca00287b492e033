"""From logits to the law that tokens are drawn from, and drawing from it.

The warpers and their order (temperature, top_k, top_p, min_p) are those of ``transformers.generate``, so a run here
samples from what the same settings mean there. Only top_p has code of its own, for speed: transformers' sorts the
vocabulary for every node of a tree, which on a CPU takes a quarter of a round.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from eagle.checks import number
from eagle.errors import InputError


class Warper:
    """The warping of logits that a set of sampling parameters means.

    Args:
        temperature: 0 is greedy; larger is flatter.
        top_p: keep the smallest set of most likely tokens whose mass reaches this; 0 and 1 mean off.
        top_k: keep the k most likely tokens; 0 means off.
        min_p: keep tokens with at least this share of the most likely one's probability; 0 means off.

    Raises:
        InputError: a parameter is out of its range or not a number.
    """

    def __init__(self, temperature: float, top_p: float = 0.0, top_k: float = 0.0, min_p: float = 0.0) -> None:
        temperature, top_p, top_k = number("temperature", temperature), number("top_p", top_p), number("top_k", top_k)
        min_p = number("min_p", min_p)
        if not math.isfinite(temperature) or temperature < 0:
            raise InputError(f"temperature must be a finite number, 0 or more, not {temperature}")
        if not 0.0 <= top_p <= 1.0:
            raise InputError(f"top_p must lie in [0, 1], not {top_p}")
        if not math.isfinite(top_k) or top_k < 0 or top_k != int(top_k):
            raise InputError(f"top_k must be a whole number, 0 or more, not {top_k}")
        if not 0.0 <= min_p <= 1.0:
            raise InputError(f"min_p must lie in [0, 1], not {min_p}")
        self.temperature, self.top_p, self.top_k, self.min_p = temperature, top_p, top_k, min_p
        self.greedy = temperature == 0.0
        self._warpers = LogitsProcessorList()
        if not self.greedy:
            if temperature != 1.0:
                self._warpers.append(TemperatureLogitsWarper(temperature))
            if top_k:
                self._warpers.append(TopKLogitsWarper(int(top_k)))
            if 0.0 < top_p < 1.0:
                self._warpers.append(NucleusWarper(top_p))
            if min_p:
                self._warpers.append(MinPLogitsWarper(min_p))

    def __eq__(self, other: object) -> bool:
        """Whether it warps alike."""
        return isinstance(other, Warper) and self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._settings)

    @property
    def _settings(self) -> tuple[float, ...]:
        return self.temperature, self.top_p, self.top_k, self.min_p

    @property
    def plain(self) -> bool:
        """Whether it is the softmax and nothing else."""
        return not self.greedy and not self._warpers

    def tempered(self, factor: float) -> Warper:
        """The same warping at ``factor`` times the temperature."""
        return Warper(self.temperature * factor, self.top_p, self.top_k, self.min_p)

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities of the next token.

        Args:
            logits: (N, V), any floating dtype.

        Returns:
            (N, V) probabilities, float32 (float64 for float64 logits). With ``temperature=0`` the logits themselves:
            a greedy rule looks only for the largest entry. A row with NaN or +inf stays NaN, for the rule to report.
        """
        if self.greedy:
            return logits
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        warped = self._warpers(None, logits.to(wide)) if self._warpers else logits
        return warped.softmax(dim=-1, dtype=wide)


class NucleusWarper(LogitsProcessor):
    """Keep the smallest set of most likely tokens whose mass reaches ``top_p`` (Holtzman et al. 2020).

    Args:
        top_p: in (0, 1).
    """

    FIRST_GUESS, GROWTH = 256, 16

    def __init__(self, top_p: float) -> None:
        self.top_p = top_p

    def __call__(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:
        """(N, V) scores -> (N, V), -inf outside the set."""
        # Growing guesses need the host to look at each; only on a CPU is that cheaper than sorting everything.
        return self._keep(scores, self.FIRST_GUESS if scores.device.type == "cpu" else scores.shape[-1])

    def _keep(self, scores: Tensor, guess: int) -> Tensor:
        """Look for the set among the ``guess`` likeliest tokens, and in rows where it is larger, among more."""
        values, tokens = scores.topk(min(guess, scores.shape[-1]), dim=-1)
        p = (values - scores.logsumexp(-1, keepdim=True)).exp()
        likelier = p.cumsum(-1) - p
        kept = torch.full_like(scores, -torch.inf)
        kept.scatter_(-1, tokens, values.masked_fill(likelier >= self.top_p, -torch.inf))
        if guess < scores.shape[-1]:
            larger = likelier[:, -1] < self.top_p
            if larger.any():
                kept[larger] = self._keep(scores[larger], guess * self.GROWTH)
        return kept
