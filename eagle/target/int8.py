"""Linear layers with 8-bit weights and 8-bit activations, on a CPU.

The products are FBGEMM's, of integers and therefore exact. Activations are rounded row by row, so what one token gives
does not depend on the other nodes of its tree; with one scale for all rows, which is usual, nothing would be lossless.
A quantised model is another model than the one it was made of: ``python -m eagle.evaluation.audit.distance`` says how
far from it.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from eagle.errors import InputError
from eagle.target.packed import OpaqueLinear, memory, pack_weights, replace_linear

INT8 = "int8"
QUANTIZE = (INT8,)
LEVELS = 255
ENGINE = "fbgemm"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _product(rows: Tensor, number: Tensor, out_features: int) -> Tensor:
    return _multiply(rows, memory(number))


def _shape_of_product(rows: Tensor, number: Tensor, out_features: int) -> Tensor:
    return rows.new_empty(*rows.shape[:-1], out_features)


torch.library.define("eagle::int8_product", "(Tensor rows, Tensor number, int out_features) -> Tensor")
torch.library.impl("eagle::int8_product", "CPU")(_product)
torch.library.register_fake("eagle::int8_product")(_shape_of_product)


def _multiply(rows: Tensor, packed: Any) -> Tensor:
    """(..., in) float32 from 0 to ``LEVELS``, which are rounded -> (..., out) float32."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(rows, 1.0, 0, packed)


class Int8Linear(OpaqueLinear):
    """A linear layer with 8-bit weights, one scale for each output, and 8-bit activations, a scale and an offset for
    each row.

    Args:
        linear: the layer; nothing of its weight is kept.
    """

    sums: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / largest_code()
        codes = (weight / scales[:, None]).round()
        super().__init__(linear, _packed(codes.to(torch.int8), scales))
        # What an offset of a whole row comes to.
        self.register_buffer("sums", codes.sum(1) * scales, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.float()
        low, high = rows.aminmax(dim=-1, keepdim=True)
        step = ((high - low) / LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
        rows = (rows - low) / step
        if torch.compiler.is_compiling():
            product = torch.ops.eagle.int8_product(rows, self.number, self.out_features)
        else:
            product = _multiply(rows, self._packed)
        y = torch.addcmul(low * self.sums, product, step).to(x.dtype)
        return y if self.bias is None else y + self.bias

    @property
    def weight_bytes(self) -> int:
        """See ``OpaqueLinear.weight_bytes``."""
        return self.in_features * self.out_features

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        raise InputError("a model with int8 weights cannot be saved; save the one that it was loaded from")


def prepare_weights(module: nn.Module, quantize: str | None) -> None:
    """Put the weights of a loaded model into the form in which they are multiplied.

    Args:
        module: it.
        quantize: one of ``QUANTIZE``, or None.

    Raises:
        InputError: a model that cannot be quantised.
    """
    if quantize == INT8:
        quantize_weights(module)
    else:
        pack_weights(module)


def prepare_draft_weights(module: nn.Module, quantize: str | None) -> None:
    """Put the weights of a draft into the form in which drafting multiplies by them; it cannot be trained or written
    afterwards.

    One level of a tree costs what it takes to read them from memory, from which the target's have driven them since the
    level before. On a CPU these are 8-bit ones where there are kernels for it, whether or not the target is quantised:
    what a draft says is only a proposal, and its samples are verified against the laws they were really drawn from, so
    rounding its weights may cost acceptance but never changes the law of the text.

    Args:
        module: as loaded.
        quantize: as the target, see ``prepare_weights``.

    Raises:
        InputError: a draft that cannot be quantised, though the target is.
    """
    parameters = list(module.parameters())
    kernels = ENGINE in torch.backends.quantized.supported_engines
    rounds = kernels and all(each.device.type == "cpu" and each.dtype in DTYPES for each in parameters)
    prepare_weights(module, INT8 if quantize is not None or rounds else None)


def quantize_weights(module: nn.Module) -> None:
    """Replace the linear layers of a module by ``Int8Linear``.

    Raises:
        InputError: they are not on a CPU for which there are such products, or not in a dtype that is quantised.
    """
    if ENGINE not in torch.backends.quantized.supported_engines:
        raise InputError("--quantize int8 needs the products of FBGEMM, which torch has on x86 CPUs only")
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    elsewhere = next((weight.device.type for weight in weights if weight.device.type != "cpu"), None)
    if elsewhere is not None:
        raise InputError(f"--quantize int8 is for models on the CPU, not on {elsewhere}; --load-in-8bit is for a GPU")
    other = next((weight.dtype for weight in weights if weight.dtype not in DTYPES), None)
    if other is not None:
        raise InputError(f"--quantize int8 is not for weights in {other}: load the model in float32 or bfloat16")
    replace_linear(module, Int8Linear, lambda _: True)


def quantized(module: nn.Module) -> bool:
    """Whether a module has such layers."""
    return any(isinstance(each, Int8Linear) for each in module.modules())


@functools.cache
def largest_code() -> int:
    """The largest number that a weight may be rounded to for products to be exact on this CPU.

    FBGEMM adds pairs of products in 16 bits where there are no instructions for more (VNNI); 255 * 127 * 2 do not fit.
    """
    inputs, most = 64, 127
    packed = _packed(torch.full((1, inputs), most, dtype=torch.int8), torch.ones(1))
    exact = float(_multiply(torch.full((1, inputs), float(LEVELS)), packed)) == LEVELS * most * inputs
    return most if exact else most // 2


def _packed(codes: Tensor, scales: Tensor) -> Any:
    """(out, in) int8 and (out,) scales, in FBGEMM's order."""
    with _engine(), warnings.catch_warnings():
        # Quantised tensors will go from torch some day; the range of versions that this package is for has them.
        warnings.filterwarnings("ignore", message=".*quantized tensor creation functions.*deprecated")
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(weight, None)


@contextlib.contextmanager
def _engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
