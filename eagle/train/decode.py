"""Decoding many texts at once with a stock model: the rows of one batch, each of its own length, refilled as they end.

Every step is one forward of one token per row. A row whose text has ended takes the next prompt at once, so the batch
stays full however different the lengths of the answers are. Keys and values lie without gaps, which on a CPU makes the
products of attention several times as fast (``eagle.target.attention``), so a cache that gets too narrow is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from eagle.devices import wide_dtype
from eagle.errors import InputError
from eagle.target.kv_cache import TreeCache
from eagle.target.target import Target
from eagle.tree.drawing import draw_rows, uniforms
from eagle.tree.warping import Warper

# The width of the cache is a multiple of this: kernels are generated for each width, and widening copies everything.
WIDTH_STEP = 64
# A cache with more than this share of its width unused is cut.
UNUSED_WIDTH = 0.3
# What draw_rows cannot draw from is drawn as this.
NO_TOKEN = -1


@dataclass(frozen=True)
class Request:
    """A text to be decoded.

    Attributes:
        key: whatever the caller knows it by.
        prompt: token ids, at least one.
        temperature: 0 is greedy.
        max_new_tokens: at least one.
        seed: of this text's own draws.
    """

    key: str
    prompt: list[int]
    temperature: float
    max_new_tokens: int
    seed: int


@dataclass
class Text:
    """A text in the making: its request, the new tokens so far, and whether it ended by itself."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    def add(self, token: int, stop_ids: frozenset[int]) -> bool:
        """Append a token; returns whether the text is over.

        Raises:
            InputError: the token could not be drawn.
        """
        if token == NO_TOKEN:
            raise InputError("the target's logits hold NaN or infinity; load it in another dtype (bfloat16 or float32)")
        self.tokens.append(token)
        self.finished = token in stop_ids
        return self.finished or len(self.tokens) == self.request.max_new_tokens


class RowsLayer(CacheLayerMixin):
    """Keys and values of one attention layer, each (rows, heads, width, head_dim); a row is filled from the left.

    Args:
        cache: whose lengths say where each row's next token goes.
    """

    is_sliding = False

    def __init__(self, cache: RowsCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for rows like the only one of these states, (1, heads, n, head_dim)."""
        rows, width = self.cache.rows, self.cache.width
        # Not empty memory: what is masked is still multiplied, and may not be NaN.
        self.keys, self.values = (
            states.new_zeros(rows, states.shape[1], width, states.shape[-1]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token a row, (rows, heads, 1, head_dim), behind each row's last; returns all there is."""
        index, lengths = self.cache.index.to(self.keys.device), self.cache.lengths.to(self.keys.device)
        self.keys[index, :, lengths] = key_states[:, :, 0]
        self.values[index, :, lengths] = value_states[:, :, 0]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Positions of the longest row."""
        return max(self.cache.host_lengths)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key positions that a step attends to, and the offset of the first."""
        return self.cache.width, 0

    def get_max_length(self) -> int:
        """Positions there is room for."""
        return self.cache.width


class RowsCache(Cache):
    """The cache of a whole model for a batch of texts of different lengths.

    Args:
        layers: attention layers of the model.
        rows: texts it holds.
        device: of the lengths.

    Attributes:
        rows: texts it holds.
        width: positions of every row.
        lengths: (rows,) int64, positions filled; ``host_lengths`` are the same numbers.
        index: (rows,) int64, 0, 1, ...
    """

    def __init__(self, layers: int, rows: int, device: torch.device) -> None:
        self.rows, self.width = rows, WIDTH_STEP
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.index = torch.arange(rows, device=device)
        self.host_lengths = [0] * rows
        self.row_layers = [RowsLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.row_layers))

    def put(self, row: int, prompt: TreeCache, length: int) -> None:
        """Copy the first ``length`` positions of a prompt's cache to a row."""
        self.set_length(row, length)
        self.make_room()
        for layer, read in zip(self.row_layers, prompt.tree_layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(read.keys, read.values)
            layer.keys[row, :, :length] = read.keys[0, :, :length]
            layer.values[row, :, :length] = read.values[0, :, :length]

    def set_length(self, row: int, length: int) -> None:
        """Say how much of a row is filled."""
        self.lengths[row] = length
        self.host_lengths[row] = length

    def advance(self) -> None:
        """Count the token that every row has just got."""
        self.lengths += 1
        self.host_lengths = [length + 1 for length in self.host_lengths]

    def make_room(self) -> None:
        """Widen for one more token in every row, or cut what is unused if it is much."""
        needed = -(-(max(self.host_lengths) + 1) // WIDTH_STEP) * WIDTH_STEP
        if needed > self.width or needed <= (1.0 - UNUSED_WIDTH) * self.width:
            self._reshape(self.index, needed)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which become rows 0, 1, ..."""
        picked = self.index[torch.tensor(rows, device=self.index.device)]
        self.lengths = self.lengths[picked]
        self.host_lengths = [self.host_lengths[row] for row in rows]
        self.rows = len(rows)
        self._reshape(picked, self.width)
        self.index = self.index[: self.rows]
        self.make_room()

    def _reshape(self, picked: Tensor, width: int) -> None:
        """Take rows, and cut or extend them to a width."""
        for layer in self.row_layers:
            if layer.is_initialized:
                layer.keys = _extended(layer.keys, picked, width)
                layer.values = _extended(layer.values, picked, width)
        self.width = width


def _extended(states: Tensor, picked: Tensor, width: int) -> Tensor:
    """(rows, heads, w, d) -> (picked, heads, width, d), filled up with zeros."""
    copied = states.new_zeros(len(picked), states.shape[1], width, states.shape[-1])
    kept = min(width, states.shape[2])
    copied[:, :, :kept] = states[picked.to(states.device), :, :kept]
    return copied


class Batch:
    """The rows that are decoded together, and what the next token of each is drawn with.

    Args:
        target: the model.
        rows: texts at a time.
        warper: top_p and top_k of all texts, at temperature 1.
        stop_ids: tokens that end a text.
        most_new_tokens: of any text.

    Attributes:
        made: tokens drawn so far.
    """

    def __init__(
        self, target: Target, rows: int, warper: Warper, stop_ids: frozenset[int], most_new_tokens: int
    ) -> None:
        self.target, self.warper, self.stop_ids = target, warper, stop_ids
        self.made = 0
        device = target.device
        self.cache = RowsCache(len(target.windows), rows, device)
        self.texts: list[Text | None] = [None] * rows
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.temperatures = torch.ones(rows, device=device)
        self.points = torch.zeros(rows, most_new_tokens, dtype=wide_dtype(device), device=device)
        # Draws taken by each row.
        self.drawn = torch.zeros(rows, 1, dtype=torch.int64, device=device)

    @property
    def free(self) -> list[int]:
        """Rows without a text."""
        return [row for row, text in enumerate(self.texts) if text is None]

    @torch.inference_mode()
    def decode(self, requests: Iterable[Request]) -> Iterator[Text]:
        """Decode all requests, as many at a time as there are rows; yields texts as they end.

        A text's draws are its own, so what it was batched with changes it only through the rounding of the forward.

        Args:
            requests: read one by one, as rows get free.

        Raises:
            InputError: logits with NaN or infinity.
        """
        source = iter(requests)
        waiting = True
        while True:
            for row in self.free if waiting else ():
                while self.texts[row] is None:
                    request = next(source, None)
                    if request is None:
                        waiting = False
                        break
                    text = self.start(request, row)
                    if self.texts[row] is None:
                        yield text
            if not waiting:
                self.shrink()
            if not any(self.texts):
                return
            yield from self.step()

    def start(self, request: Request, row: int) -> Text:
        """Read a prompt, draw its first token, and give it a row unless that token ends it already."""
        text = Text(request)
        generator = torch.Generator().manual_seed(request.seed)
        points = uniforms(request.max_new_tokens, generator).to(self.points)
        prompt = torch.tensor([request.prompt])
        length = len(request.prompt)
        read = self.target.new_cache(length)
        logits = self.target.prefill(prompt, read, features=False).logits
        temperature = torch.tensor([request.temperature], device=self.target.device)
        greedy = [0] if request.temperature == 0 else []
        token = choose(logits, temperature, points[:1], greedy, self.warper)
        self.made += 1
        if not text.add(int(token), self.stop_ids):
            self.cache.put(row, read, length)
            self.texts[row], self.tokens[row] = text, token[0]
            self.temperatures[row], self.drawn[row] = request.temperature, 1
            self.points[row, : len(points)] = points
        self.target.recycle(read)
        return text

    def step(self) -> list[Text]:
        """One more token for every text; returns those that are over, and frees their rows."""
        self.cache.make_room()
        output = self.target.model(
            input_ids=self.tokens[:, None],
            position_ids=self.cache.lengths[:, None],
            attention_mask=self._mask(),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache.advance()
        points = self.points.gather(1, self.drawn)[:, 0]
        self.drawn += 1
        greedy = [row for row, text in enumerate(self.texts) if text is not None and text.request.temperature == 0]
        self.tokens = choose(output.logits[:, -1], self.temperatures, points, greedy, self.warper)
        over = []
        for row, (text, token) in enumerate(zip(self.texts, self.tokens.tolist(), strict=True)):
            if text is None:
                continue
            self.made += 1
            if text.add(token, self.stop_ids):
                over.append(text)
                self.texts[row] = None
                self.cache.set_length(row, 0)
                self.drawn[row] = 0
        return over

    def shrink(self) -> None:
        """Drop the free rows once they are half of all: there is nothing left to fill them with."""
        used = [row for row, text in enumerate(self.texts) if text is not None]
        if not used or 2 * len(used) > len(self.texts):
            return
        self.texts = [self.texts[row] for row in used]
        picked = torch.tensor(used, device=self.tokens.device)
        self.tokens, self.temperatures = self.tokens[picked], self.temperatures[picked]
        self.points, self.drawn = self.points[picked], self.drawn[picked]
        self.cache.keep(used)

    def _mask(self) -> Tensor | dict[str, Tensor]:
        """The additive mask (rows, 1, 1, width), or one for each kind of attention layer the model has."""
        places = torch.arange(self.cache.width, device=self.cache.lengths.device)
        behind = self.cache.lengths[:, None] - places
        masks = {}
        for window in set(self.target.windows):
            seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
            mask = torch.zeros(seen.shape, dtype=self.target.dtype, device=seen.device)
            masks[window] = mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)[:, None, None]
        if len(masks) == 1:
            return masks.popitem()[1]
        return {"full_attention" if window is None else "sliding_attention": mask for window, mask in masks.items()}


def choose(logits: Tensor, temperatures: Tensor, points: Tensor, greedy: Sequence[int], warper: Warper) -> Tensor:
    """Draw a token in each row by inversion, or take the most likely one.

    Args:
        logits: (B, V).
        temperatures: (B,); 0 only in greedy rows.
        points: (B,) draws from [0, 1) in double precision.
        greedy: rows that take the most likely token.
        warper: what is done after the temperature.

    Returns:
        (B,) int64; ``NO_TOKEN`` for logits with NaN or infinity.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    probs = warper(wide / temperatures.to(wide.dtype).where(temperatures > 0, 1.0)[:, None])
    tokens = draw_rows(probs, points)
    if greedy:
        rows = torch.tensor(greedy, device=logits.device)
        tokens[rows] = wide[rows].argmax(-1)
    return tokens.masked_fill_(probs[:, 0].isnan(), NO_TOKEN)
