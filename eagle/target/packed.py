"""Linear layers whose weights lie in memory as the products of a CPU read them.

A product of a few rows, which is all that scoring a tree or a token is, takes as long as its weight takes to be read.
oneDNN has an order of its own for that, in which the products of 8 rows took two thirds of the time that they take in
the order of a checkpoint (docs/measured.md). And each product has to be begun, so what the same rows are multiplied by,
as for queries, keys and values, is one weight here.
"""

from __future__ import annotations

import itertools
import platform
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eagle.errors import InputError

# Products of the same rows, as the modules of transformers call them.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Rows that the order is chosen for. Of 1, 8 and 64 it was the best all round, see docs/measured.md.
ROWS = 8

_NUMBERS = itertools.count()
# Such memory is opaque to the compiler, which is given numbers instead.
_PACKED: dict[int, Any] = {}


class OpaqueLinear(nn.Module, ABC):
    """A linear layer for inference on the CPU, with its weight in memory that only one kernel reads.

    Args:
        linear: the layer; nothing of its weight is kept.
        packed: that memory.

    Attributes:
        bias: (out,), or None.
        number: () int64; the number of that memory, see ``memory``.
    """

    def __init__(self, linear: nn.Linear, packed: Any) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._packed = packed
        # A compiled forward is one for all layers of a kind, so which weight it reads has to be in a tensor.
        number = next(_NUMBERS)
        _PACKED[number] = packed
        weakref.finalize(self, _PACKED.pop, number)
        self.number = torch.tensor(number)
        self.train(linear.training)

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Memory of the weight."""

    def extra_repr(self) -> str:
        """See ``nn.Module.extra_repr``."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OpaqueLinear:
        raise InputError(
            "the weights of a model loaded on the CPU are packed for it and can be neither moved nor converted; "
            "load it with the device_map and dtype that are wanted"
        )


def memory(number: Tensor) -> Any:
    """What a layer's ``number`` stands for."""
    return _PACKED[int(number)]


def _product(x: Tensor, number: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, memory(number), bias, "none", [], "")


def _shape_of_product(x: Tensor, number: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


torch.library.define("eagle::packed_linear", "(Tensor x, Tensor number, Tensor? bias, int out_features) -> Tensor")
torch.library.impl("eagle::packed_linear", "CPU")(_product)
torch.library.register_fake("eagle::packed_linear")(_shape_of_product)


class PackedLinear(OpaqueLinear):
    """A linear layer whose weight is in oneDNN's order.

    Args:
        linear: the layer; nothing of its weight is kept.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear, torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if torch.compiler.is_compiling():
            return torch.ops.eagle.packed_linear(x, self.number, self.bias, self.out_features)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")

    @property
    def weight(self) -> Tensor:
        """(out, in), a copy in the usual order."""
        return self._packed.to_dense()

    @property
    def weight_bytes(self) -> int:
        """See ``OpaqueLinear.weight_bytes``."""
        return self._packed.numel() * self._packed.element_size()

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight


class Part(nn.Module):
    """Some of the outputs of a layer that does the products of several, one after the other called with the same rows.

    Called with other rows than its siblings it is the same layer, if a slow one.

    Args:
        whole: the layer.
        begin: first of its outputs.
        end: behind the last.
    """

    def __init__(self, whole: Whole, begin: int, end: int) -> None:
        super().__init__()
        self.whole, self.begin, self.end = whole, begin, end
        self.in_features, self.out_features = whole.product.in_features, end - begin
        self.train(whole.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.whole(x, self.begin)[..., self.begin : self.end]

    def _save_to_state_dict(self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool) -> None:
        part: dict[str, Any] = {}
        self.whole.product._save_to_state_dict(part, "", keep_vars)
        destination.update({f"{prefix}{name}": tensor[self.begin : self.end].clone() for name, tensor in part.items()})


class Whole(nn.Module):
    """The products of several layers at once, kept until each of them has asked for its part.

    Args:
        product: the layer that does them.
        parts: layers.
    """

    def __init__(self, product: nn.Linear | OpaqueLinear, parts: int) -> None:
        super().__init__()
        self.product, self.parts = product, parts
        self._last: tuple[Tensor, Tensor] | None = None
        self._asked: tuple[int, ...] = ()
        self.train(product.training)

    def forward(self, x: Tensor, part: int) -> Tensor:
        """(..., in) -> (..., out), of all parts; ``part`` tells who asks."""
        # Who asks again has new rows, in the same memory or not.
        if self._last is None or self._last[0] is not x or part in self._asked:
            self._last, self._asked = (x, self.product(x)), ()
        y = self._last[1]
        self._asked = (*self._asked, part)
        if len(self._asked) == self.parts:
            self._last = None
        return y

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing of its own: each part saves its outputs under the name of the layer that it stands for."""
        return {} if destination is None else destination


def joined(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer with the outputs of several of the same input side by side."""
    weight = torch.cat([layer.weight.detach() for layer in layers])
    one = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    one.weight = nn.Parameter(weight, requires_grad=False)
    if any(layer.bias is not None for layer in layers):
        biases = [
            weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in layers
        ]
        one.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return one.train(layers[0].training)


def pack_weights(module: nn.Module) -> None:
    """Replace the linear layers of a module that a ``PackedLinear`` can stand for: plain ones, on an x86 CPU, in a
    dtype that it has kernels for.

    A weight that other modules hold too, as the embeddings do of a tied output layer, is there twice from then on.
    """
    kernels = {torch.float32: True, torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported()}
    if torch.backends.mkldnn.is_available() and platform.machine().lower() in ("x86_64", "amd64"):
        replace_linear(module, PackedLinear, lambda linear: kernels.get(linear.weight.dtype, False))


def join_weights(module: nn.Module) -> None:
    """Let layers of a module that the same rows are multiplied by, plain ones on a GPU, be one product.

    Small products do not keep a GPU's memory busy: on an H200 queries, keys and values of Llama-3.1-8B's sizes take 29
    microseconds one by one, 16 together.
    """
    _join_siblings(module, lambda linear: linear, lambda linear: linear.weight.device.type == "cuda")
    for child in module.children():
        join_weights(child)


def replace_linear(
    module: nn.Module, kind: Callable[[nn.Linear], OpaqueLinear], fits: Callable[[nn.Linear], bool]
) -> None:
    """Put layers of a kind in the place of the plain linear layers of a module that are on the CPU and ``fit``."""

    def suits(linear: nn.Linear) -> bool:
        return linear.weight.device.type == "cpu" and fits(linear)

    _join_siblings(module, kind, suits)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            if _plain(child) and suits(child):
                setattr(module, name, kind(child))
        else:
            replace_linear(child, kind, fits)


def _join_siblings(
    module: nn.Module, kind: Callable[[nn.Linear], nn.Linear | OpaqueLinear], fits: Callable[[nn.Linear], bool]
) -> None:
    for names in SIBLINGS:
        layers = [layer for name in names if isinstance(layer := getattr(module, name, None), nn.Linear)]
        alike = len({(layer.in_features, layer.bias is None, layer.weight.device) for layer in layers}) == 1
        if len(layers) == len(names) and alike and all(_plain(layer) and fits(layer) for layer in layers):
            whole, end = Whole(kind(joined(layers)), len(layers)), 0
            for name, layer in zip(names, layers, strict=True):
                begin, end = end, end + layer.out_features
                setattr(module, name, Part(whole, begin, end))


def parameter_count(module: nn.Module) -> int:
    """Numbers that a module was trained to; a tied output layer that was packed counts for itself."""
    packed = sum(layer.in_features * layer.out_features for layer in _packed_in(module))
    return packed + sum(each.numel() for each in module.parameters())


def packed_bytes(module: nn.Module) -> int:
    """Memory of the weights that were packed."""
    return sum(layer.weight_bytes for layer in _packed_in(module))


def _packed_in(module: nn.Module) -> list[OpaqueLinear]:
    return [each for each in module.modules() if isinstance(each, OpaqueLinear)]


def _plain(module: nn.Linear) -> bool:
    # Not its subclasses, which compute something else, and nothing that somebody watches or moves by hooks.
    watched = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook")
    weight = module.weight
    return type(module) is nn.Linear and not watched and weight.numel() > 0
