"""8-bit copies of a head's weights, for drafting on a CPU.

There, one level of a tree costs what it takes to read the head's weights from memory. Rounded to 8 bits they are half
as long. What a head says is only a proposal, and its samples are verified against the laws they were really drawn from,
so rounding may cost acceptance but never changes the law of the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagle.drafters.eagle3.head import Eagle3Head
from eagle.target.int8 import ENGINE, INT8, prepare_weights

MOST_ROWS = 8
# The kernel reads whole vectors of a row of the weight, beyond its end where the row is not a multiple of them.
MULTIPLE = 64


class Int8WeightLinear(nn.Module):
    """A linear layer that reads an 8-bit copy of its weight for a few rows at a time.

    For more than ``MOST_ROWS`` rows (a prompt, say) arithmetic is what takes the time, and the weight itself is faster.

    Args:
        linear: the layer, see ``with_int8_weights``; its weight is kept.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.weight = linear.in_features, linear.weight
        wide = linear.weight.detach().float()
        scales = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("codes", (wide / scales[:, None]).round().to(torch.int8), persistent=False)
        self.register_buffer("scales", scales.to(linear.weight.dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        if len(x) > MOST_ROWS:
            return F.linear(x, self.weight)
        # The one kernel of torch for bfloat16 rows and 8-bit weights; torchao's wrapper of it costs what it saves here.
        return torch._weight_int8pack_mm(x, self.codes, self.scales)


def prepare_for_drafting(head: Eagle3Head, quantize: str | None) -> None:
    """Put the weights of a head into the form in which drafting multiplies by them; it cannot be trained or written
    afterwards.

    On a CPU these are 8-bit ones where there are kernels for it, whether or not the target is quantised.

    Args:
        head: as loaded.
        quantize: as the target, see ``eagle.target.int8``.

    Raises:
        InputError: a head that cannot be quantised, though the target is.
    """
    head.join()
    on_cpu = next(head.parameters()).device.type == "cpu"
    if quantize is not None or (on_cpu and ENGINE in torch.backends.quantized.supported_engines and _float32(head)):
        prepare_weights(head, INT8)
    else:
        with_int8_weights(head)
        prepare_weights(head, None)


def _float32(module: nn.Module) -> bool:
    return all(parameter.dtype == torch.float32 for parameter in module.parameters())


def with_int8_weights(module: nn.Module) -> None:
    """Replace the linear layers of a module that an ``Int8WeightLinear`` can stand for: bfloat16 on a CPU, without
    bias, and of sizes that are multiples of 64."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            weight, bias = child.weight, "bias" in dict(child.named_parameters())
            fits = child.in_features % MULTIPLE == 0 and child.out_features % MULTIPLE == 0
            if fits and not bias and weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
                setattr(module, name, Int8WeightLinear(child))
        else:
            with_int8_weights(child)
