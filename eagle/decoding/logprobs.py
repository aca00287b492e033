"""Log-probabilities of a text's tokens, as it is written."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from eagle.target.text import Text


@dataclass(frozen=True)
class Logprob:
    """A token of a text.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability, under the law that it was drawn from.
        top: the most likely tokens there, with theirs, the most likely first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class Logprobs:
    """Watches a decoding (``Decoding.watch``), and notes log-probabilities: of what the model and its processors say,
    warped as the text is; of greedy texts, whose law is a single token, of the softmax.

    Attributes:
        text: that is written.
        most: how many of the most likely tokens are noted with each.
        found: of the new tokens so far.
    """

    text: Text
    most: int
    found: list[Logprob] = field(default_factory=list)

    def __call__(self, tokens: list[int], logits: Tensor) -> None:
        """See ``Decoding.watch``."""
        if self.text.processors is not None:
            before = [*self.text.prompt[0].tolist(), *(each.token for each in self.found)]
            rows = [
                self.text.processors.of_texts(logits[row, None], logits.new_tensor([before + tokens[:row]]).long())
                for row in range(len(tokens))
            ]
            logits = torch.cat(rows)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        logs = wide.log_softmax(-1) if self.text.warper.greedy else self.text.warper(wide).log()
        values, ids = logs.topk(self.most, dim=-1)
        own = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
        tops = [tuple(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
        self.found += [Logprob(*each) for each in zip(tokens, own, tops, strict=True)]
