"""Compiled forwards: the decoder layers of a stock model, compiled as one function that all of them share.

What a model computes beside products and attention is many small operations, which the compiler puts into a few. A
layer is compiled once for a single token and once for the nodes of a tree, of whatever number, behind a text of
whatever length: all that changes from round to round is in tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from eagle.errors import InputError
from eagle.launches import CompiledForms, mark_varying
from eagle.target.kv_cache import LayerSlots, TreeCache


class CompiledLayers:
    """The decoder layers of a model, to be run compiled.

    Args:
        layers: in the order of their caches.
        by: compiles the function of a layer, to be called with the form first.
    """

    def __init__(
        self, layers: Sequence[nn.Module], by: Callable[[Callable[..., Any]], Callable[..., Any]] = CompiledForms
    ) -> None:
        self.layers = layers
        # The wrapper of transformers around ``forward`` is for training.
        structures = [_structure(layer) for layer in layers]
        one_of = dict(zip(structures, layers, strict=True))
        functions = {structure: by(inspect.unwrap(type(layer).forward)) for structure, layer in one_of.items()}
        self._functions = [functions[structure] for structure in structures]
        self._varying: tuple[int, ...] = ()

    @contextmanager
    def with_varying(self, *sizes: int) -> Iterator[None]:
        """Within this context what is compiled is for tensors of other sizes too, where these are sizes of them."""
        self._varying = sizes
        try:
            yield
        finally:
            self._varying = ()

    @contextmanager
    def over(self, cache: TreeCache, slots: Tensor, width: int) -> Iterator[None]:
        """Within this context the layers run compiled, over a cache that holds a prompt already.

        Args:
            cache: of the text.
            slots: (n,) int64, where the states of the n tokens go.
            width: positions that are attended to, under a mask.
        """
        alone = len(slots) == 1
        for layer, function, memory in zip(self.layers, self._functions, cache.tree_layers, strict=True):
            view = LayerSlots(memory.keys[:, :, :width], memory.values[:, :, :width], slots)
            # Not as an attribute, which a module looks at closely; hooks of the layer stay outside.
            layer.__dict__["forward"] = partial(self._run, function, alone, layer, view)
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.__dict__["forward"]

    def _run(
        self,
        function: Callable[..., Any],
        alone: bool,
        layer: nn.Module,
        view: LayerSlots,
        *args: Any,
        past_key_values: object,
        **kwargs: Any,
    ) -> Any:
        if self._varying:
            mark_varying((view.keys, view.values, view.slots, args, tuple(kwargs.values())), self._varying)
        return function(alone, layer, *args, past_key_values=view, **kwargs)


def _structure(layer: nn.Module) -> str:
    """What distinguishes layers of a model, but for their weights and their place."""
    return repr([(name, type(module), _settings(module), _shapes(module)) for name, module in layer.named_modules()])


def _settings(module: nn.Module) -> dict[str, object]:
    kinds = bool | int | float | str | None
    return {key: value for key, value in vars(module).items() if key != "layer_idx" and isinstance(value, kinds)}


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}


def decoder_layers(model: PreTrainedModel, count: int) -> list[nn.Module]:
    """The decoder layers of a model with ``count`` caches, in order, ready to be compiled.

    Raises:
        InputError: they cannot be told, do not take their cache as those of most models do, or are watched by hooks.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    signatures = [inspect.signature(inspect.unwrap(type(layer).forward)) for layer in layers]
    if len(layers) != count or not all("past_key_values" in signature.parameters for signature in signatures):
        raise InputError(f"the decoder layers of {type(model).__name__} cannot be told from its other modules")
    for layer in layers:
        for module in layer.modules():
            if module is not layer:
                _unwatch(module)
    return layers


def _unwatch(module: nn.Module) -> None:
    """Take off a module within a layer the hooks of transformers, which wait for somebody to ask for attention weights:
    the compiler cannot read them, and the kernels of this package have none to show."""
    hooks = module._forward_hooks
    for number, hook in list(hooks.items()):
        if hook.__module__ == output_capturing.__name__:
            del hooks[number]
    if hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
        raise InputError(f"a hook watches {type(module).__name__}, so what is in a decoder layer cannot be compiled")
