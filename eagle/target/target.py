"""The target: any stock ``AutoModelForCausalLM``, asked for logits and features of a prompt or of a tree.

Tree attention is a 4-D additive mask, rotary positions are the nodes' depths, and the key-value cache is ours; the
modeling files of ``transformers`` are used as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from eagle.devices import sent
from eagle.errors import InputError
from eagle.target.attention import GROUPED_SDPA
from eagle.target.compiled import CompiledLayers
from eagle.target.context import context_length
from eagle.target.kv_cache import Slabs, TreeCache, lasting
from eagle.target.masks import tree_masks
from eagle.target.positions import switch_of
from eagle.target.recorded import RecordedForwards
from eagle.tree.draft_tree import DraftTree

# Prompts are read in pieces of so many tokens, which bounds the memory of activations for long ones.
PREFILL_CHUNK = 1024
# And they are filled up to a multiple of this: CPU kernels are generated for each length, kept, and take megabytes.
PREFILL_STEP = 32


@dataclass(frozen=True)
class Scores:
    """What the target says of some tokens.

    Attributes:
        logits: (N, V) of the token after each of them (after a prompt: of the last one only).
        features: (N, k * H), the chosen hidden states side by side; None when they were not asked for.
    """

    logits: Tensor
    features: Tensor | None

    def first(self, count: int) -> Scores:
        """The first rows, in memory of their own."""
        features = None if self.features is None else self.features[:count].clone()
        return Scores(self.logits[:count].clone(), features)

    def at(self, places: Tensor) -> Scores:
        """The rows at some places, (M,) int64 on the host, in their order."""
        if len(places) == len(self.logits):
            return self
        chosen = sent(places, self.logits.device)
        return Scores(self.logits[chosen], None if self.features is None else self.features[chosen])


class Target:
    """A causal language model seen as a scorer of trees.

    Args:
        model: the model, in evaluation mode.
        feature_layers: entries of ``hidden_states`` (0 is the embeddings) that make up a feature; empty: none.

    Attributes:
        windows: of each attention layer its sliding window, None for full attention.
        switch: where its position encoding changes with the length of the text, None: nowhere.

    Raises:
        InputError: an architecture in which a drafted tree cannot be scored in one forward.
    """

    def __init__(self, model: PreTrainedModel, feature_layers: tuple[int, ...] = ()) -> None:
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        self.feature_layers = feature_layers
        self.windows = attention_windows(model)
        self.switch = switch_of(model)
        self.attention_before = str(self.config._attn_implementation)
        if self.attention_before == "sdpa":
            model.set_attn_implementation(GROUPED_SDPA)
        self.attention = str(self.config._attn_implementation)
        self.accepts_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.compiled: CompiledLayers | None = None
        self.recorded: RecordedForwards[Scores] | None = None
        self._spare: Slabs | None = None
        self._one_device = len({parameter.device for parameter in model.parameters()}) == 1
        embeddings = model.get_input_embeddings().weight
        self.device = embeddings.device
        # Quantised weights have an integer dtype; the embeddings always have the dtype of the activations.
        self.dtype = embeddings.dtype
        if self.device.type == "cuda":
            # cuDNN's attention, which torch prefers on new cards, is planned for each length of text anew, which takes
            # tenths of a second (modelscope/FunASR issue 3704).
            torch.backends.cuda.enable_cudnn_sdp(False)

    @property
    def vocab_size(self) -> int:
        """Tokens of the target's vocabulary."""
        return int(self.config.vocab_size)

    @property
    def context_length(self) -> int | None:
        """Positions the model was made for; None if its configuration does not say."""
        return context_length(self.config)

    @property
    def one_encoding(self) -> int | None:
        """Tokens of a text up to which positions are encoded in one way; None if the configuration sets no bound."""
        return self.context_length if self.switch is None else self.switch.at

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return stop_ids(self.model.generation_config, self.config)

    @property
    def pad_id(self) -> int | None:
        """Token that pads prompts, as the stock ``generate`` takes it from the generation config."""
        generation = self.model.generation_config
        return None if generation is None else generation.pad_token_id

    @property
    def embedding(self) -> Tensor:
        """(V, H), the input embedding table."""
        return self.model.get_input_embeddings().weight

    def new_cache(self, capacity: int) -> TreeCache:
        """An empty cache for ``capacity`` positions, in recycled memory where that is large enough."""
        capacity += PREFILL_STEP
        if self.recorded is not None:
            # Recordings are of one memory, so it had better last.
            capacity = lasting(capacity)
        slabs, self._spare = self._spare, None
        if slabs is None or slabs.capacity < capacity:
            slabs = Slabs(capacity, tensors=len(self.windows) if self._one_device else 1)
        return TreeCache(len(self.windows), slabs)

    def recycle(self, cache: TreeCache) -> None:
        """Take the memory of a cache not used any more: allocating it anew for every text fragments the heap."""
        cache.slabs.reuse()
        self._spare = cache.slabs

    def prefill(self, input_ids: Tensor, cache: TreeCache, features: bool = True) -> Scores:
        """Read a prompt, or the rest of one whose beginning is in the cache.

        Args:
            input_ids: (1, n) int64.
            cache: an empty cache; or one of what comes before, where positions are encoded alike in all texts.
            features: also return the features of all n tokens.

        Returns:
            Logits of the last token only, (1, V), and features (n, k * H).
        """
        length, before = input_ids.shape[1], cache.committed
        # Filling may not lengthen the text past where positions are encoded in another way; nor may pieces lie on both
        # sides of it.
        behind = self.switch is not None and length > self.switch.at
        most = self.switch.at if self.switch and not behind else self.context_length or 0
        filled = min(-(-length // PREFILL_STEP) * PREFILL_STEP, max(most - before, length))
        chunk = filled if behind else PREFILL_CHUNK
        # What follows the prompt is invisible to it under causal attention, and forgotten below.
        padded = functional.pad(input_ids.to(self.device), (0, filled - length))
        pieces = []
        for start in range(0, length, chunk):
            piece = padded[:, start : start + chunk]
            last = min(length - start, piece.shape[1]) - 1
            pieces.append(self._forward(piece, cache, features, only_row=last))
        cache.commit_prompt(before + length)
        seen = [piece.features for piece in pieces if piece.features is not None]
        return Scores(pieces[-1].logits, torch.cat(seen)[:length] if seen else None)

    def levels(self, root: int, levels: int) -> int:
        """Of ``levels`` that may be drafted below a root at a position, those that one forward scores rightly."""
        return levels if self.switch is None else self.switch.levels(root, levels)

    def refuse_crossing(self, start: int, end: int) -> None:
        """Refuse texts that grow from ``start`` to ``end`` tokens where that changes how positions are encoded.

        For what reads many texts side by side or again and again; a single text goes on, see ``read_anew``.

        Raises:
            InputError: they would.
        """
        if self.switch is not None and start <= self.switch.at < end:
            raise InputError(
                f"texts of {start} to {end} tokens cross the {self.switch.at} at which {type(self.model).__name__} "
                "changes its position encoding; take shorter prompts or fewer new tokens"
            )

    def read_anew(self, tokens: Sequence[int], cache: TreeCache) -> bool:
        """Where the stock model would, read a text again whose cache is of another position encoding than its next
        token; returns whether it was.

        Args:
            tokens: n, the last one not in the cache yet.
            cache: of the n - 1 others.
        """
        switch = self.switch
        if switch is None or not switch.rereads or cache.committed != switch.at:
            return False
        text = torch.tensor([tokens[:-1]], device=self.device)
        cache.forget()
        # In one piece and with the token behind it, whose position makes all of them be encoded as its own.
        self._forward(functional.pad(text, (0, 1), value=tokens[-1]), cache, features=False, only_row=0)
        cache.commit_prompt(switch.at)
        return True

    def score(self, tree: DraftTree, cache: TreeCache, features: bool = True) -> Scores:
        """Score all nodes of a tree in one forward; follow it by ``cache.keep(path)``.

        Args:
            tree: N nodes.
            cache: holds everything before the root.
            features: also return the features of the nodes.

        Returns:
            Logits (N, V) and features (N, k * H), a row per node.
        """
        if self.recorded is not None:
            scores = self.recorded.score(tree, cache, features)
            if scores is not None:
                return scores
        return self.extend(tree.tokens, tree.depths, tree.ancestors(), cache, features)

    def score_recorded(self, numbers: Tensor, seen: Tensor, cache: TreeCache, width: int, features: bool) -> Scores:
        """Score n nodes by what tensors on the device say, with layers that are compiled; nobody waits for it.

        Args:
            numbers: (1 + 2n,) int64: the number of committed tokens, then the nodes' tokens, then their depths.
            seen: (n, n) bool, what each node attends to, itself included.
            cache: everything before the tree; its lengths are the caller's business.
            width: positions that are attended to, under a mask.
            features: also return features.
        """
        if self.compiled is None:
            raise ValueError("layers that are not compiled write behind what a number says")
        committed, (tokens, depths) = numbers[0], numbers[1:].view(2, -1)
        mask = tree_masks(seen, depths, committed, width, self.windows, self.dtype)
        with self.compiled.over(cache, committed + torch.arange(len(tokens), device=self.device), width):
            return self._forward(
                tokens[None], cache, features, position_ids=(committed + depths)[None], attention_mask=mask
            )

    def extend(self, tokens: Tensor, depths: Tensor, seen: Tensor, cache: TreeCache, features: bool = False) -> Scores:
        """Score n more nodes of a tree, of which m - n lie in the cache already, behind what is committed.

        Args:
            tokens: (n,) int64, on any device.
            depths: (m,) int64 on the host, of all nodes: a node's position is that of the committed tokens' end plus
                its depth.
            seen: (n, m) bool, on any device: which nodes each of the n attends to, itself included.
            cache: everything before the tree, and its first m - n nodes.
            features: also return features.

        Returns:
            Logits (n, V) and features (n, k * H).
        """
        count, nodes = seen.shape
        positions = cache.committed + depths[nodes - count :]
        # A lone root is a plain decoding step. GPU kernels are fastest on it without a mask; on a CPU, transformers
        # groups the query heads of a single token only when there is one, which at 2,000 tokens halves the forward.
        plain = nodes == 1 and self.device.type != "cpu" and self.compiled is None
        mask: Tensor | dict[str, Tensor] | None
        if plain:
            cache.view_exactly()
            mask = None
        else:
            mask = self._masks(seen, depths, cache.committed, width=cache.view_masked(nodes))
        with self._layers(cache, nodes - count, nodes):
            return self._forward(
                sent(tokens[None], self.device),
                cache,
                features,
                position_ids=sent(positions[None], self.device),
                attention_mask=mask,
            )

    @contextmanager
    def _layers(self, cache: TreeCache, first: int, end: int) -> Iterator[None]:
        """Run the decoder layers compiled, if they are, over nodes ``first`` to ``end`` behind what is committed."""
        if self.compiled is None:
            yield
            return
        slots = torch.arange(cache.committed + first, cache.committed + end)
        with self.compiled.over(cache, sent(slots, self.device), cache.slabs.view):
            yield
        cache.written(end)

    def _masks(self, seen: Tensor, depths: Tensor, committed: int, width: int) -> Tensor | dict[str, Tensor]:
        masks = tree_masks(seen, sent(depths, seen.device), committed, width, self.windows, self.dtype)
        if isinstance(masks, Tensor):
            return sent(masks, self.device)
        return {kind: sent(mask, self.device) for kind, mask in masks.items()}

    def _forward(
        self, input_ids: Tensor, cache: TreeCache, features: bool, only_row: int | None = None, **inputs: Any
    ) -> Scores:
        """Logits of all tokens, or of ``only_row``, and features of all."""
        wanted = list(self.feature_layers) if features and self.feature_layers else None
        if only_row is not None and self.accepts_logits_to_keep:
            inputs["logits_to_keep"] = torch.tensor([only_row], device=input_ids.device)
        output = self.model(
            input_ids=input_ids, past_key_values=cache, use_cache=True, output_hidden_states=wanted, **inputs
        )
        logits = output.logits[0]
        if only_row is not None and not self.accepts_logits_to_keep:
            logits = logits[only_row : only_row + 1]
        if wanted is None:
            return Scores(logits, None)
        chosen = [states[0].to(logits.device) for states in selected(output.hidden_states, wanted, len(self.windows))]
        return Scores(logits, torch.cat(chosen, dim=-1))


def selected(hidden_states: Sequence[Tensor], entries: Sequence[int], layers: int) -> list[Tensor]:
    """Hidden states that a model was asked for by ``output_hidden_states=entries``, 0 being the embeddings.

    Raises:
        InputError: this version of transformers counts them otherwise (5.17 left the embeddings out).
    """
    if len(hidden_states) != layers + 1:
        raise InputError(
            f"transformers {transformers.__version__} does not count a model's hidden states from the embeddings; "
            "install what requirements.txt names"
        )
    return [hidden_states[entry] for entry in entries]


def stop_ids(generation: GenerationConfig | None, config: PretrainedConfig) -> frozenset[int]:
    """Tokens that end a model's texts: the eos ids of its generation config, or, where that names none, of its own."""
    eos = generation.eos_token_id if generation is not None else None
    if eos is None:
        eos = config.eos_token_id
    return frozenset({eos} if isinstance(eos, int) else eos or ())


def attention_windows(model: PreTrainedModel) -> list[int | None]:
    """For each attention layer its sliding window, None for full attention.

    Raises:
        InputError: a layer keeps something other than keys and values of single positions, the attention kernel takes
            no 4-D mask, positions cannot be given, or the model mixes kinds of attention but takes no mask for each.
    """
    config = model.config.get_text_config(decoder=True)
    name = type(model).__name__
    kernel = config._attn_implementation
    if kernel not in ("sdpa", "eager", GROUPED_SDPA):
        raise InputError(
            f"{name} was loaded with attn_implementation={kernel!r}, which takes no tree mask; "
            "load it with attn_implementation='sdpa' or 'eager'"
        )
    positions = inspect.signature(model.forward).parameters
    if "position_ids" not in positions or getattr(config, "alibi", False):
        raise InputError(f"{name} takes no position ids, so the nodes of a draft tree cannot be given their positions")
    layers = DynamicCache(config=model.config).layers
    types = getattr(config, "layer_types", None) or []
    unsupported = sorted({type(layer).__name__ for layer in layers} - {"DynamicLayer", "DynamicSlidingWindowLayer"})
    if not layers or unsupported or "chunked_attention" in types:
        what = "chunked attention" if "chunked_attention" in types else ", ".join(unsupported) or "no attention"
        raise InputError(
            f"{name} has layers ({what}) whose state cannot be rolled back to one path of a draft tree; "
            "only full and sliding-window attention is supported"
        )
    windows = [
        layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None
        for layer in layers
        if isinstance(layer, DynamicLayer)
    ]
    if len(set(windows)) > 1 and not _takes_a_mask_for_each_kind(model, windows):
        raise InputError(
            f"{name} mixes layers of sliding windows {sorted({w or 0 for w in windows})} (0: full attention) in a way "
            "that takes no separate mask for each kind, so it cannot score a draft tree"
        )
    return windows


def _takes_a_mask_for_each_kind(model: PreTrainedModel, windows: list[int | None]) -> bool:
    """Whether a dict of two masks (``full_attention``, ``sliding_attention``) goes through the model's forward."""
    if len(set(windows)) > 2 or None not in windows:
        return False
    embeddings = model.get_input_embeddings().weight
    mask = torch.zeros(1, 1, 1, 1, dtype=embeddings.dtype, device=embeddings.device)
    token = torch.zeros(1, 1, dtype=torch.int64, device=embeddings.device)
    try:
        with torch.inference_mode():
            model(input_ids=token, attention_mask={"full_attention": mask, "sliding_attention": mask})
    except (AttributeError, TypeError, ValueError, KeyError):
        return False
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(f"{type(model).__name__} cannot read a single token as it was loaded: {reason}") from error
    return True
