"""``EaModel``: a target and an EAGLE-3 drafter behind the interface of the original EAGLE code."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eagle import assets
from eagle.errors import InputError, PromptError
from eagle.model import tune
from eagle.model.base import load_base, load_tokenizer
from eagle.model.checkpoint import load_head, local_folder
from eagle.model.clock import Clock
from eagle.model.decoding import Decoding, DecodingInfo
from eagle.model.drafter import Drafter
from eagle.model.int8 import with_int8_weights
from eagle.model.method import Method
from eagle.model.sampling import Warper
from eagle.model.stored_trees import NO_TREES, StoredTrees
from eagle.model.target import Target
from eagle.model.tree import AUTO_TOTAL_TOKEN, Sampling, TreeShape
from eagle.verification import RULES, Rule

EOT = "<|eot_id|>"
EAGLE_BOUNDS = {"total_token": 60, "depth": 7, "top_k": 10}


class EaModel:
    """A base model with an EAGLE-3 head, decoding losslessly.

    Build it with ``from_pretrained``. Names and defaults are those of the original EAGLE code.

    Args:
        target: the base model.
        drafter: the head.
        shape: of the trees; what it says of samples holds for hybrid trees, None there is the default.
        base_model_path: where the tokenizer is, if anywhere.
        trees: stored with the head, by kind and temperature; they come before ``shape``.

    Attributes:
        base_model: the ``transformers`` model.
        ea_layer: the draft head.
        config: the base model's configuration.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter,
        shape: TreeShape,
        base_model_path: str,
        trees: StoredTrees = NO_TREES,
    ) -> None:
        self.target, self.drafter, self.shape, self.trees = target, drafter, shape, trees
        self.base_model_path = base_model_path
        self.base_model, self.ea_layer, self.config = target.model, drafter.head, target.model.config
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def from_pretrained(
        cls,
        use_eagle3: bool = True,
        base_model_path: str | None = None,
        ea_model_path: str | None = None,
        total_token: int | None = None,
        depth: int | None = None,
        top_k: int | None = None,
        sampling: Sampling | None = None,
        **hf_kwargs: Any,
    ) -> EaModel:
        """Load a base model and its head.

        The trees are those stored with the head for the device, the kind of tree and the temperature; where one of the
        next four arguments is given, or nothing is stored, what is not given is as in the original EAGLE code.

        Args:
            use_eagle3: must be true; EAGLE-1/2 heads are not supported.
            base_model_path: local directory, hub id, or the alias of an embedded pair; None with ``ea_model_path``
                None: the embedded default pair.
            ea_model_path: local directory or hub id of the head; None only together with an embedded base model.
            total_token: nodes of the draft tree, the root included (60); -1 measures what is best on this machine.
            depth: expansions after the tree's first level (7).
            top_k: children of an expanded node, and expanded nodes a level (10).
            sampling: of the hybrid trees that ``hsd=True`` drafts; None is a default.
            **hf_kwargs: passed to ``AutoModelForCausalLM.from_pretrained`` (``dtype`` or ``torch_dtype``,
                ``device_map``, ``quantization_config``, ...). Without ``device_map`` the best device of the machine
                is taken.

        Raises:
            InputError: (a ``ValueError``) anything about the arguments or the files that does not fit, in one line.
        """
        if not use_eagle3:
            raise InputError("use_eagle3=False (an EAGLE-1/2 head) is not supported; use an EAGLE-3 head")
        auto = total_token == AUTO_TOTAL_TOKEN
        bounds = (("total_token", tune.LARGEST if auto else total_token), ("depth", depth), ("top_k", top_k))
        given = {name: value for name, value in bounds if value is not None}
        shape = TreeShape(**EAGLE_BOUNDS | given, sampling=sampling)
        base_model_path, ea_model_path = assets.resolve_pair(base_model_path, ea_model_path)
        target = Target(load_base(base_model_path, **hf_kwargs))
        head = load_head(ea_model_path, target)
        with_int8_weights(head)
        if auto:
            shape = tune.tuned_shape(target, head, shape)
        trees = NO_TREES
        if not given and sampling is None:
            trees = StoredTrees.read(local_folder(ea_model_path, "the draft head"), target.device.type)
        return cls(target, Drafter(head), shape, base_model_path, trees)

    def eval(self) -> EaModel:
        """The model itself, which is always in evaluation mode."""
        return self

    @property
    def device(self) -> torch.device:
        """Where ``input_ids`` go and ``output_ids`` come from."""
        return self.target.device

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """See ``get_tokenizer``."""
        return self.get_tokenizer()

    def get_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer.

        Raises:
            InputError: the base model comes without one.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.base_model_path)
        return self._tokenizer

    def eagenerate(
        self,
        input_ids: Tensor,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: float = 0.0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
        log: bool = False,
        is_llama3: bool = False,
        hsd: bool = False,
        generator: torch.Generator | None = None,
        verifier: str | None = None,
        tree: str | TreeShape | None = None,
    ) -> Tensor | tuple[Tensor, int, int, DecodingInfo]:
        """Generate speculatively; the text is distributed exactly as the base model's own.

        Args:
            input_ids: (1, n) int64 prompt.
            temperature: 0 is greedy.
            top_p: nucleus mass; 0 and 1 mean off.
            top_k: most likely tokens kept; 0 means off.
            max_new_tokens: new tokens at most.
            max_length: tokens at most, the prompt included.
            log: also return counts and timings.
            is_llama3: ``<|eot_id|>`` also ends the text.
            hsd: hierarchical verification of hybrid trees; false is EAGLE-3: deterministic trees, token-wise.
            generator: source of randomness; None is torch's global CPU generator.
            verifier: for ablations, another rule: ``tokenwise``, ``blockwise``, ``hsd`` or ``hsd_published``, which is
                lossy and warns.
            tree: for ablations, another kind of tree (``deterministic``, ``hybrid``, ``chain``), or a shape, which is
                taken as it is: one without ``sampling`` is a deterministic tree, also with ``hsd``.

        Returns:
            ``output_ids`` (1, length), prompt included, ending with the stop token if there was one; with ``log`` also
            the number of new tokens, the index of the last round (-1: the prefill ended it) and a ``DecodingInfo``.

        Raises:
            InputError: (a ``ValueError``) bad arguments, a rule that does not go with the tree, logits with NaN, or,
                as ``PromptError``, a prompt that leaves no room.
        """
        method = self._method(hsd, verifier, tree, temperature)
        decoding = self._decoding(
            method, input_ids, temperature, top_p, top_k, max_new_tokens, max_length, is_llama3, generator
        )
        return _run(decoding, log)

    def ea_generate(
        self,
        input_ids: Tensor,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: float = 0.0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
        is_llama3: bool = False,
        hsd: bool = False,
        generator: torch.Generator | None = None,
        verifier: str | None = None,
        tree: str | TreeShape | None = None,
    ) -> Iterator[Tensor]:
        """``eagenerate`` as a stream: yields the growing ``output_ids`` (1, length) after prefill and each round."""
        method = self._method(hsd, verifier, tree, temperature)
        decoding = self._decoding(
            method, input_ids, temperature, top_p, top_k, max_new_tokens, max_length, is_llama3, generator
        )
        return (progress.output_ids() for progress in _rounds(decoding))

    def rounds(
        self,
        drafting: Method | None,
        input_ids: Tensor,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: float = 0.0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
        is_llama3: bool = False,
        generator: torch.Generator | None = None,
        shape: TreeShape | None = None,
    ) -> Generator[Decoding, None, None]:
        """A generation for those who watch it: yields it, one and the same, after prefill and each round.

        Nothing happens before the first item is asked for. Closing the iterator ends the generation early; the next one
        gets its memory.

        Args:
            drafting: kind of tree and verification rule; None decodes autoregressively.
            input_ids: as those of ``eagenerate``, like all that follow.
            temperature: 0 is greedy.
            top_p: nucleus mass; 0 and 1 mean off.
            top_k: most likely tokens kept; 0 means off.
            max_new_tokens: new tokens at most.
            max_length: tokens at most, the prompt included.
            is_llama3: ``<|eot_id|>`` also ends the text.
            generator: source of randomness; None is torch's global CPU generator.
            shape: bounds of the trees; None: see ``shape_for``.

        Raises:
            InputError: as ``eagenerate``, with the first item.
        """
        method = None
        if drafting is not None:
            bounded = drafting.shape(shape) if shape else self.shape_for(drafting, temperature)
            method = bounded, drafting.rule
        yield from _rounds(
            self._decoding(
                method, input_ids, temperature, top_p, top_k, max_new_tokens, max_length, is_llama3, generator
            )
        )

    def naivegenerate(
        self,
        input_ids: Tensor,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: float = 0.0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
        log: bool = False,
        is_llama3: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor | tuple[Tensor, int, int, DecodingInfo]:
        """The baseline: autoregressive decoding through the same target path, with ``eagenerate``'s arguments."""
        decoding = self._decoding(
            None, input_ids, temperature, top_p, top_k, max_new_tokens, max_length, is_llama3, generator
        )
        return _run(decoding, log)

    def stop_ids(self, is_llama3: bool = False) -> frozenset[int]:
        """Tokens that end a text: the eos ids of the model's generation config, and ``<|eot_id|>`` for Llama 3.

        Raises:
            InputError: ``is_llama3`` with a tokenizer that has no ``<|eot_id|>``.
        """
        if not is_llama3:
            return self.target.stop_ids
        eot = self.get_tokenizer().get_vocab().get(EOT)
        if eot is None:
            raise InputError(f"is_llama3=True, but the tokenizer has no {EOT} token")
        return self.target.stop_ids | {eot}

    def shape_for(self, method: Method, temperature: float) -> TreeShape:
        """The trees of a method in texts of a temperature: those stored with the head, else those of the model."""
        return method.shape(self.trees.at(temperature, method.at(temperature).tree, self.shape))

    def _method(
        self, hsd: bool, verifier: str | None, tree: str | TreeShape | None, temperature: float
    ) -> tuple[TreeShape, Rule]:
        if isinstance(tree, TreeShape):
            return tree, Method.named(hsd, verifier, tree.kind).rule
        method = Method.named(hsd, verifier, tree)
        return self.shape_for(method, temperature), method.rule

    def _decoding(
        self,
        method: tuple[TreeShape, Rule] | None,
        input_ids: Tensor,
        temperature: float,
        top_p: float,
        top_k: float,
        max_new_tokens: int,
        max_length: int,
        is_llama3: bool,
        generator: torch.Generator | None,
    ) -> Decoding:
        clock = Clock(self.device)
        warper = Warper(temperature, top_p, top_k)
        processor_time = clock.lap()
        limit = self._limit(input_ids, max_new_tokens, max_length)
        shape, rule = method or (None, RULES["tokenwise"])
        return Decoding(
            self.target,
            None if shape is None else (self.drafter, shape),
            input_ids,
            warper,
            limit,
            self.stop_ids(is_llama3),
            generator,
            rule,
            processor_time,
        )

    def _limit(self, input_ids: Tensor, max_new_tokens: int, max_length: int) -> int:
        """Total tokens this prompt may grow to; also where a prompt is refused."""
        if input_ids.ndim != 2 or input_ids.shape[0] != 1:
            raise InputError(f"input_ids must have shape (1, n), one prompt at a time, not {tuple(input_ids.shape)}")
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise InputError(f"input_ids must be integers, not {input_ids.dtype}")
        length = input_ids.shape[1]
        if length == 0:
            raise PromptError("the prompt is empty; give at least one token (the model's bos token, for instance)")
        if int(input_ids.min()) < 0 or int(input_ids.max()) >= self.target.vocab_size:
            raise PromptError(f"input_ids hold a token outside the model's vocabulary of {self.target.vocab_size}")
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be 1 or more, not {max_new_tokens}")
        context = self.target.context_length
        for room, name in ((max_length, "max_length"), (context, "the model's context")):
            if room is not None and length >= room:
                raise PromptError(f"the prompt of {length} tokens leaves no room for an answer within {name} of {room}")
        return min(length + max_new_tokens, max_length, context or max_length)


def _run(decoding: Decoding, log: bool) -> Tensor | tuple[Tensor, int, int, DecodingInfo]:
    while not decoding.finished:
        decoding.step()
    if not log:
        return decoding.output_ids()
    return decoding.output_ids(), decoding.new_tokens, len(decoding.info["tree_time"]) - 1, decoding.info


def _rounds(decoding: Decoding) -> Generator[Decoding, None, None]:
    try:
        yield decoding
        while not decoding.finished:
            decoding.step()
            yield decoding
    except GeneratorExit:
        # Not after an error: NaN in the caches would poison the next generation.
        decoding.stop()
        raise
