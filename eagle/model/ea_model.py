"""``EaModel``: a target and its drafters behind the interface of the original EAGLE code."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from eagle import assets
from eagle.clock import Clock
from eagle.decoding.decoding import Decoding, rounds
from eagle.decoding.info import DecodingInfo
from eagle.decoding.logprobs import Logprobs
from eagle.decoding.method import DRAFT_MODEL, DRAFTERS, HEAD, PICKING, SORTED, Method
from eagle.decoding.prompt import Prompt
from eagle.decoding.prompt_cache import PromptCache
from eagle.decoding.result import result
from eagle.decoding.sampling_params import SamplingParams
from eagle.decoding.speculation import AUTOREGRESSIVE, Offer, Speculation, offer_of, speculation
from eagle.drafters.drafter import Drafter
from eagle.drafters.eagle3.drafter import HeadDrafter
from eagle.drafters.lookup.drafter import DEFAULT_LOOKUP, LookupSettings
from eagle.drafters.sorted.exits import SortedDraft
from eagle.errors import InputError
from eagle.model.offers import Bounds, Drafts, offers_of
from eagle.target.base import load_tokenizer
from eagle.target.compiling import AUTO, COMPILE, OFF, ON, compile_target
from eagle.target.int8 import QUANTIZE
from eagle.target.loading import load_target
from eagle.target.processors import processors_of
from eagle.target.target import Target
from eagle.target.text import Text
from eagle.text import StopStrings
from eagle.tree.shape import PATHS, Sampling, TreeShape

EOT = "<|eot_id|>"
# New tokens, at most, from which on a CPU gains more by compiling than it takes (some 40 s, against 8 ms a round).
COMPILING_PAYS = 20_000


class EaModel:
    """A base model with what drafts for it, decoding losslessly.

    Build it with ``from_pretrained``. Names and defaults are those of the original EAGLE code.

    Args:
        target: the base model.
        offers: the drafters it has, by name (``eagle3``, ``draft``, ``lookup``, ...), with their trees.
        base_model_path: where the tokenizer is, if anywhere.

    Attributes:
        base_model: the ``transformers`` model.
        ea_layer: the draft head; None where there is only a draft model.
        compiles: what ``compile`` of ``from_pretrained`` was.
        preferred: what its ``drafter`` was.
        prompts: what texts leave to longer ones, which then are not read from the start; None: nothing.
        config: the base model's configuration.
    """

    def __init__(self, target: Target, offers: Mapping[str, Offer], base_model_path: str) -> None:
        self.target, self.offers, self.base_model_path = target, dict(offers), base_model_path
        self.base_model, self.config = target.model, target.model.config
        head = self.offers[HEAD].drafter if HEAD in self.offers else None
        self.ea_layer = head.head if isinstance(head, HeadDrafter) else None
        self.compiles = OFF
        self.preferred: str | None = None
        self.prompts: PromptCache | None = None
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
        verify_target: bool = True,
        draft_model_path: str | None = None,
        sorted_draft: SortedDraft | None = None,
        paths: int | None = None,
        compile: str = AUTO,
        quantize: str | None = None,
        lookup: LookupSettings = DEFAULT_LOOKUP,
        least: float | None = None,
        least_expanded: float | None = None,
        drafter: str | None = None,
        **hf_kwargs: Any,
    ) -> EaModel:
        """Load a base model and its head, or a separate draft model in its place or beside it.

        The trees are those stored with the head for the device, the kind of tree and the temperature; where one of the
        next four arguments is given, or nothing is stored, what is not given is as in the original EAGLE code.

        Args:
            use_eagle3: must be true; EAGLE-1/2 heads are not supported.
            base_model_path: local directory, hub id, or the alias of an embedded pair; None with ``ea_model_path``
                None: the embedded default pair.
            ea_model_path: local directory or hub id of the head; None only together with an embedded base model, with
                a draft model, or where ``drafter`` needs none.
            total_token: nodes of the draft tree, the root included (60); -1 measures what is best on this machine.
            depth: expansions after the tree's first level (7); of a draft model's trees the levels (10).
            top_k: children of an expanded node, and expanded nodes a level (10).
            sampling: of the hybrid trees that ``hsd=True`` drafts; None is a default.
            verify_target: check on the loaded base model that it scores trees as it scores single tokens, and refuse
                it otherwise. False skips the check.
            draft_model_path: local directory or hub id of a smaller model with the same tokenizer.
            sorted_draft: the target's own first layers, trained to draft (``python -m eagle.train sorted``).
            paths: i.i.d. chains of the trees ``paths`` (11).
            compile: the models' layers: ``on``, ``off``, or ``auto``: on a GPU, and on a CPU when enough is announced
                (``expect``). What cannot be compiled goes on without, and says so.
            quantize: ``int8``: models on a CPU are given 8-bit weights and activations, which makes other models of
                them; None leaves them as they are.
            lookup: what the drafter ``lookup``, which needs no model, looks up. Trees of ``lookup``, ``suffix`` and
                ``recycling`` have up to 16 nodes on 12 levels, whatever the bounds above; those of ``eagle3+lookup``
                and ``eagle3+suffix`` are the head's, with up to 16 nodes.
            least: key of a node that is worth scoring, about its probability; None: all are, and with look-up 0.1.
            least_expanded: the same of a node that is worth running what drafts on.
            drafter: drafts where none is named, see ``eagenerate``; None: the head, or without one the draft model.
            **hf_kwargs: passed to ``AutoModelForCausalLM.from_pretrained`` (``dtype``, ``torch_dtype``, ``device_map``,
                ``quantization_config``, ...). Without ``device_map`` the best device of the machine is taken.

        Raises:
            InputError: (a ``ValueError``) anything about the arguments or the files that does not fit, in one line.
        """
        if compile not in COMPILE:
            raise InputError(f"compile must be one of {', '.join(COMPILE)}, not {compile!r}")
        if not use_eagle3:
            raise InputError("use_eagle3=False (an EAGLE-1/2 head) is not supported; use an EAGLE-3 head")
        if drafter not in (None, *DRAFTERS):
            raise InputError(f"drafter must be None or one of {', '.join(DRAFTERS)}, not {drafter!r}")
        bounds = Bounds(total_token, depth, top_k, sampling, paths, least, least_expanded)
        # A number out of its range is said before anything is loaded.
        _ = bounds.of_a_head
        if quantize not in (None, *QUANTIZE):
            raise InputError(f"quantize must be None or one of {', '.join(QUANTIZE)}, not {quantize!r}")
        headless = draft_model_path is not None or sorted_draft is not None or drafter in PICKING
        resolve = assets.resolve_base_and_head if headless else assets.resolve_pair
        base_model_path, ea_model_path = resolve(base_model_path, ea_model_path)
        target = load_target(base_model_path, quantize, verify_target, **hf_kwargs)
        drafts = Drafts(ea_model_path, draft_model_path, sorted_draft, lookup)
        offers = offers_of(drafts, target, base_model_path, quantize, bounds, **hf_kwargs)
        model = cls(target, offers, base_model_path)
        model.compiles, model.preferred = compile, drafter
        if compile == ON or (compile == AUTO and target.device.type != "cpu"):
            model.compile()
        return model

    def compile(self) -> None:
        """Compile the layers of the base model and what drafts for it, if that was not done and can be."""
        compile_target(self.target)
        for offer in self.offers.values():
            offer.drafter.compile()

    def expect(self, new_tokens: int) -> None:
        """So many tokens at most will be asked for, of all texts: with ``compile="auto"``, compile if that pays."""
        if self.compiles == AUTO and new_tokens >= COMPILING_PAYS:
            self.compile()

    def eval(self) -> EaModel:
        """Put base model and head into evaluation mode, in which they are loaded; returns the model itself."""
        self.base_model.eval()
        if self.ea_layer is not None:
            self.ea_layer.eval()
        return self

    @property
    def default(self) -> str:
        """Name of the drafter that drafts where none is named: the preferred one, else the head, if there is one."""
        if self.preferred is not None:
            return self.preferred
        return next((name for name in (HEAD, DRAFT_MODEL) if name in self.offers), SORTED)

    @property
    def drafter(self) -> Drafter:
        """The default drafter."""
        return self.offers[self.default].drafter

    @property
    def shape(self) -> TreeShape:
        """Of the default drafter's trees, where none are stored."""
        return self.offers[self.default].shape

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
        input_ids: Tensor | Sequence[int] | Sequence[Sequence[int]],
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: float | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        log: bool = False,
        is_llama3: bool = False,
        hsd: bool = False,
        generator: torch.Generator | None = None,
        verifier: str | None = None,
        tree: str | TreeShape | None = None,
        attention_mask: Tensor | Sequence[Any] | None = None,
        drafter: str | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
    ) -> Tensor | tuple[Tensor, int, int, DecodingInfo]:
        """Generate speculatively; the text is distributed exactly as the base model's own.

        What the model's ``generation_config`` says beside sampling is done as the stock ``generate`` does it: tokens
        that end a text, penalties, tokens and n-grams that are forbidden, forced or put off. Its sampling values
        (``temperature``, ``top_p``, ``top_k`` and the like) are not read, as in the original EAGLE code: sampling is
        what the arguments say. None means the default, in every argument.

        Args:
            input_ids: (1, n) int64 prompt, or a list of token ids.
            temperature: 0 (the default) is greedy.
            top_p: nucleus mass; 0 (the default) and 1 mean off.
            top_k: most likely tokens kept; 0 (the default) means off.
            max_new_tokens: new tokens at most (512).
            max_length: tokens at most, the prompt included (2048).
            log: also return counts and timings.
            is_llama3: ``<|eot_id|>`` also ends the text.
            hsd: hierarchical verification of hybrid trees; false is EAGLE-3: deterministic trees, token-wise.
            generator: source of randomness; None is torch's global CPU generator.
            verifier: for ablations, another rule: ``tokenwise``, ``blockwise``, ``hsd``, ``naive_hsd`` (of a draft
                model only) or ``hsd_published``, which is lossy and warns.
            tree: for ablations, another kind of tree (``deterministic``, ``hybrid``, ``chain``, ``paths``), or a shape,
                which is taken as it is: one without ``sampling`` is a deterministic tree, also with ``hsd``.
            attention_mask: of the shape of ``input_ids``, 0 for padding on the left, which is not read; without it
                leading padding tokens are taken for padding, as the stock ``generate`` does.
            drafter: ``eagle3`` (the head), ``draft`` (the draft model), ``lookup``, ``suffix``, ``recycling``, or the
                head with one of them, ``eagle3+lookup`` or ``eagle3+suffix``; the head, if there is one.
            min_p: see ``SamplingParams``, and so the next three.
            repetition_penalty: see there.
            stop: see there.
            logprobs: see there; with ``log``, ``DecodingInfo`` has them.

        Returns:
            ``output_ids`` (1, length), prompt and padding included, ending with the stop token if there was one; with
            ``log`` also the number of new tokens, the index of the last round (-1: the prefill ended it) and a
            ``DecodingInfo``.

        Raises:
            InputError: (a ``ValueError``) bad arguments, a rule that does not go with the tree, a ``generation_config``
                that cannot be honoured, a model in training mode, logits with NaN, or, as ``PromptError``, a prompt
                that leaves no room or that the model has no tokens for.
        """
        params = SamplingParams.of(locals())
        chosen = self.speculation(hsd, verifier, tree, drafter, params.temperature)
        return result(*self._begin(chosen, input_ids, params, attention_mask), log)

    def ea_generate(
        self,
        input_ids: Tensor | Sequence[int] | Sequence[Sequence[int]],
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: float | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        is_llama3: bool = False,
        hsd: bool = False,
        generator: torch.Generator | None = None,
        verifier: str | None = None,
        tree: str | TreeShape | None = None,
        attention_mask: Tensor | Sequence[Any] | None = None,
        drafter: str | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Iterator[Tensor]:
        """``eagenerate`` as a stream: yields the growing ``output_ids`` (1, length) after prefill and each round."""
        params = SamplingParams.of(locals())
        chosen = self.speculation(hsd, verifier, tree, drafter, params.temperature)
        decoding, prompt = self._begin(chosen, input_ids, params, attention_mask)
        return (prompt.padded(progress.output_ids()) for progress in rounds(decoding))

    def naivegenerate(
        self,
        input_ids: Tensor | Sequence[int] | Sequence[Sequence[int]],
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: float | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        log: bool = False,
        is_llama3: bool = False,
        generator: torch.Generator | None = None,
        attention_mask: Tensor | Sequence[Any] | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
        logprobs: int | None = None,
    ) -> Tensor | tuple[Tensor, int, int, DecodingInfo]:
        """The baseline: autoregressive decoding through the same target path, with ``eagenerate``'s arguments."""
        return result(*self._begin(AUTOREGRESSIVE, input_ids, SamplingParams.of(locals()), attention_mask), log)

    def rounds(
        self, drafting: Method | None, input_ids: Tensor, params: SamplingParams, shape: TreeShape | None = None
    ) -> Generator[Decoding, None, None]:
        """A generation for those who watch it: yields it, one and the same, after prefill and each round.

        Nothing happens before the first item is asked for. Closing the iterator ends the generation early; the next one
        gets its memory.

        Args:
            drafting: kind of tree, verification rule and drafter; None decodes autoregressively.
            input_ids: (1, n) int64 prompt, all of it text.
            params: sampling and ends of the text.
            shape: bounds of the trees; None: see ``shape_for``.

        Raises:
            InputError: as ``eagenerate``, with the first item.
        """
        bounded = None if drafting is None or shape is None else drafting.shape(shape)
        chosen = speculation(self.offers, drafting, params.temperature, bounded)
        yield from rounds(self._begin(chosen, input_ids, params, torch.ones_like(input_ids))[0])

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
        """The trees of a method in texts of a temperature: those stored with its drafter, else those of the model.

        Raises:
            InputError: the model has no such drafter, or the rule does not go with it.
        """
        return offer_of(self.offers, method).shape_for(method, temperature)

    def speculation(
        self, hsd: bool, verifier: str | None, tree: str | TreeShape | None, drafter: str | None, temperature: float
    ) -> Speculation:
        """What ``eagenerate`` means by these arguments.

        Raises:
            InputError: there is no such thing.
        """
        kind = tree.kind if isinstance(tree, TreeShape) else tree
        method = Method.named(hsd, verifier, kind, drafter or self.default)
        shape = tree if isinstance(tree, TreeShape) else None
        # Several paths are drawn, whether or not a shape says so.
        shape = method.shape(shape) if shape is not None and kind == PATHS else shape
        return speculation(self.offers, method, temperature, shape)

    def _begin(
        self,
        chosen: Speculation,
        input_ids: object,
        params: SamplingParams,
        attention_mask: object = None,
    ) -> tuple[Decoding, Prompt]:
        """Read the prompt; here is also where one is refused."""
        if any(module.training for module in self.base_model.modules()):
            raise InputError("the base model is in training mode (its dropout is on); call eval() on this model first")
        clock = Clock(self.device)
        stop_ids = self.stop_ids(params.is_llama3)
        prompt = Prompt.read(input_ids, attention_mask, self.target.vocab_size, self.target.pad_id, stop_ids)
        limit = prompt.limit(params, self.target.context_length)
        ids = prompt.input_ids.to(self.device)
        processors = processors_of(self.base_model, ids, limit, stop_ids, params.repetition_penalty)
        warper = params.warper()
        processor_time = clock.lap()
        ends = partial(StopStrings, self.get_tokenizer(), params.stop) if params.stop else None
        text = Text(ids, warper, limit, stop_ids, params.generator, processors, ends)
        watch = None if params.logprobs is None else Logprobs(text, params.logprobs)
        return Decoding(self.target, chosen, text, processor_time, watch, self.prompts), prompt
