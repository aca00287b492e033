"""The EAGLE-3 draft head: one decoder layer over the target's features and the embeddings of the tokens after them.

Source: EAGLE-3 (Li et al. 2025, section 3), with the switches of the speculators format (``norm_before_residual``,
``norm_before_fc``, ``fc_norm``, ``norm_output``). Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle.target.attention import few_rows
from eagle.target.memory import Memory
from eagle.target.packed import joined

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PARTS = ("gate_proj", "up_proj", "down_proj")
PROJECTIONS = ATTENTION + MLP_PARTS


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a head.

    Attributes:
        layer: configuration of the decoder layer (sizes, heads, RoPE, norm epsilon, target vocabulary size).
        draft_vocab_size: tokens the head can draft.
        target_hidden_size: width of one hidden state of the target.
        feature_layers: entries of the target's ``hidden_states`` that make up a feature.
        norm_before_residual: the residual is the normalised hidden state.
        norm_before_fc: RMSNorm over the whole feature before ``fc``.
        fc_norm: RMSNorm over each hidden state of a feature before ``fc``.
        norm_output: the next step is fed the normalised output.
        biases: those of ``PROJECTIONS`` that add one.
    """

    layer: LlamaConfig
    draft_vocab_size: int
    target_hidden_size: int
    feature_layers: tuple[int, ...]
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    biases: frozenset[str] = frozenset()


class HeadCache:
    """Keys and values of the head's layer: committed positions first, the tree being grown behind them.

    Args:
        config: the decoder layer's configuration.
        capacity: positions to hold.
        like: a parameter of the head, for dtype and device.
    """

    def __init__(self, config: LlamaConfig, capacity: int, like: Tensor) -> None:
        # Positions first in memory, so that how far apart entries lie does not depend on the capacity: what is compiled
        # would be for one capacity only.
        shape = (1, capacity, config.num_key_value_heads, config.head_dim)
        # Not empty memory: what is masked is still multiplied, and may not be NaN.
        self.keys, self.values = (like.new_zeros(shape).transpose(1, 2) for _ in range(2))
        self.capacity = capacity
        self.committed = 0
        rotary = LlamaRotaryEmbedding(config).to(like.device)
        positions = torch.arange(capacity, device=like.device)[None]
        self.cos, self.sin = (table[0] for table in rotary(like, positions))

    def recall(self, memory: Memory) -> None:
        """Be as after the tokens that something remembered is of."""
        ((keys, values),) = memory.states
        self.committed = memory.known
        self.keys[:, :, : self.committed], self.values[:, :, : self.committed] = keys, values

    def view(self, end: int, positions: slice) -> HeadView:
        """What a step sees whose inputs take the last places in front of ``end``, at these positions."""
        return HeadView(self.keys[:, :, :end], self.values[:, :, :end], self.cos[positions], self.sin[positions])


class HeadView(NamedTuple):
    """What one step of n inputs sees of a cache.

    Attributes:
        keys: (1, heads, m, head_dim).
        values: likewise.
        cos: (n or 1, head_dim), of the inputs' positions.
        sin: likewise.
        slots: (n,) int64, where the inputs' own keys and values go; None: to the last places.
    """

    keys: Tensor
    values: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor | None = None

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Put (1, heads, n, head_dim) states where they belong."""
        first = self.keys.shape[2] - keys.shape[2]
        if self.slots is not None:
            torch.ops.eagle.write_slots(self.keys, self.values, self.slots, keys, values)
        elif torch.compiler.is_compiling():
            slots = torch.arange(first, self.keys.shape[2], device=keys.device)
            torch.ops.eagle.write_slots(self.keys, self.values, slots, keys, values)
        else:
            self.keys[:, :, first:] = keys
            self.values[:, :, first:] = values


class Attention(nn.Module):
    """Attention of the head's layer, over (n, 2H) inputs."""

    def __init__(self, config: LlamaConfig, biases: frozenset[str]) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        wide = 2 * config.hidden_size
        self.qkv_proj: nn.Linear | None = None
        self.q_proj = nn.Linear(wide, self.heads * self.head_dim, bias="q_proj" in biases)
        self.k_proj = nn.Linear(wide, self.kv_heads * self.head_dim, bias="k_proj" in biases)
        self.v_proj = nn.Linear(wide, self.kv_heads * self.head_dim, bias="v_proj" in biases)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias="o_proj" in biases)

    def join(self) -> None:
        """See ``Eagle3Head.join``."""
        if self.qkv_proj is None:
            self.qkv_proj = joined([self.q_proj, self.k_proj, self.v_proj])
            del self.q_proj, self.k_proj, self.v_proj

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.qkv_proj is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        narrow = self.kv_heads * self.head_dim
        return self.qkv_proj(x).split([self.heads * self.head_dim, narrow, narrow], dim=-1)

    def forward(self, x: Tensor, view: HeadView, seen: Tensor | None) -> Tensor:
        """See ``Eagle3Head.forward``."""
        n, slot = x.shape[0], view.keys.shape[2] - x.shape[0]
        queries, keys, values = self._queries_keys_values(x)
        q = rotate(queries.view(n, self.heads, self.head_dim).transpose(0, 1), view.cos, view.sin)
        self._write(keys, values, view)
        keys, values = view.keys, view.values
        if seen is None and n > 1 and slot == 0:
            mixed = F.scaled_dot_product_attention(q[None], keys, values, is_causal=True, enable_gqa=True)
        else:
            if seen is None and n > 1:
                seen = torch.ones(n, slot + n, dtype=torch.bool, device=x.device).tril(slot)
            # The query heads that share a key-value head become rows of one attention, which spares repeating keys.
            groups = self.heads // self.kv_heads
            if seen is not None and torch.compiler.is_compiling() and x.device.type == "cuda":
                grouped = q.reshape(1, self.kv_heads, groups, n, self.head_dim)
                mixed = few_rows(grouped, keys, values, seen, self.head_dim**-0.5)
                return self._output(mixed, n)
            grouped = q.reshape(1, self.kv_heads, groups * n, self.head_dim)
            mask = None if seen is None else seen.repeat(groups, 1)
            mixed = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask)
        return self._output(mixed, n)

    def remember(self, x: Tensor, view: HeadView) -> None:
        """See ``Eagle3Head.remember``."""
        _, keys, values = self._queries_keys_values(x)
        self._write(keys, values, view)

    def _write(self, keys: Tensor, values: Tensor, view: HeadView) -> None:
        n = len(keys)
        k = rotate(keys.view(n, self.kv_heads, self.head_dim).transpose(0, 1), view.cos, view.sin)
        view.write(k[None], values.view(1, n, self.kv_heads, self.head_dim).transpose(1, 2))

    def _output(self, mixed: Tensor, n: int) -> Tensor:
        return self.o_proj(mixed.reshape(self.heads, n, self.head_dim).transpose(0, 1).reshape(n, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (heads, n, head_dim) by (n or 1, head_dim) tables, the halves of a head paired."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: LlamaConfig, biases: frozenset[str]) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias="gate_proj" in biases)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias="up_proj" in biases)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias="down_proj" in biases)
        self.activation = ACT2FN[config.hidden_act]
        self.gate_up_proj: nn.Linear | None = None

    def join(self) -> None:
        """See ``Eagle3Head.join``."""
        if self.gate_up_proj is None:
            self.gate_up_proj = joined([self.gate_proj, self.up_proj])
            del self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        """(n, H) -> (n, H)."""
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


class MidLayer(nn.Module):
    """The decoder layer; its queries, keys and values read embedding and hidden state side by side."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        size, eps = config.layer.hidden_size, config.layer.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        self.hidden_norm = nn.RMSNorm(size, eps=eps)
        self.input_layernorm = nn.RMSNorm(size, eps=eps)
        self.self_attn = Attention(config.layer, config.biases)
        self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
        self.mlp = MLP(config.layer, config.biases)

    def forward(self, embeddings: Tensor, hidden: Tensor, view: HeadView, seen: Tensor | None) -> Tensor:
        """See ``Eagle3Head.forward``."""
        x, residual = self.attention_input(embeddings, hidden)
        return self.after_attention(residual + self.self_attn(x, view, seen))

    def attention_input(self, embeddings: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(n, H) embeddings and hidden states -> (n, 2H) what attention reads, (n, H) what its output is added to."""
        normed = self.hidden_norm(hidden)
        residual = normed if self.norm_before_residual else hidden
        return torch.cat([self.input_layernorm(embeddings), normed], dim=-1), residual

    def after_attention(self, x: Tensor) -> Tensor:
        """The rest of the layer; (n, H) -> (n, H)."""
        return x + self.mlp(self.post_attention_layernorm(x))


class Eagle3Head(nn.Module):
    """The draft head.

    Args:
        config: its shape.

    Attributes:
        embedding: (V, H) table of input embeddings, shared with the target unless the checkpoint has its own; set by
            whoever loads the head.
        d2t: (draft vocabulary,) int64; draft id i is target id ``i + d2t[i]``.
    """

    embedding: Tensor
    d2t: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        size, eps = config.layer.hidden_size, config.layer.rms_norm_eps
        feature_size = config.target_hidden_size * len(config.feature_layers)
        self.fc = nn.Linear(feature_size, size, bias=False)
        self.midlayer = MidLayer(config)
        self.norm = nn.RMSNorm(size, eps=eps)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False)
        if config.norm_before_fc:
            self.input_norm = nn.RMSNorm(feature_size, eps=eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(nn.RMSNorm(config.target_hidden_size, eps=eps) for _ in config.feature_layers)

    def join(self) -> None:
        """Let the layer's products of the same input be one, of which there are fewer to launch; for inference."""
        self.midlayer.self_attn.join()
        self.midlayer.mlp.join()

    def new_cache(self, capacity: int) -> HeadCache:
        """An empty cache for ``capacity`` positions."""
        return HeadCache(self.config.layer, capacity, self.norm.weight)

    def project(self, features: Tensor) -> Tensor:
        """(n, k * target H) features of the target -> (n, H) hidden states for the first step."""
        if self.config.norm_before_fc:
            features = self.input_norm(features)
        if self.config.fc_norm:
            chunks = features.chunk(len(self.fc_norm), dim=-1)
            features = torch.cat([norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)], dim=-1)
        return self.fc(features)

    def forward(self, tokens: Tensor, hidden: Tensor, view: HeadView, seen: Tensor | None = None) -> Tensor:
        """One step of the layer; writes the keys and values of its n inputs.

        Args:
            tokens: (n,) int64 target ids, each the token after the one its hidden state belongs to.
            hidden: (n, H), projected features or the outputs of the step before.
            view: keys and values of the layer, the last n of m to be written.
            seen: (n, m) bool, what each input attends to; None: consecutive tokens, each attending to all before it and
                to itself.

        Returns:
            (n, H) outputs before the final norm.
        """
        return self.midlayer(F.embedding(tokens, self.embedding), hidden, view, seen)

    def remember(self, tokens: Tensor, hidden: Tensor, view: HeadView) -> None:
        """Write the keys and values of n consecutive tokens and compute nothing else: with one layer no other token
        needs more of them.

        Args:
            tokens: as of ``forward``, and so are the others.
            hidden: see there.
            view: see there.
        """
        x, _ = self.midlayer.attention_input(F.embedding(tokens, self.embedding), hidden)
        self.midlayer.self_attn.remember(x, view)

    def behind(self, features: Tensor, tokens: Tensor, view: HeadView) -> tuple[Tensor, Tensor]:
        """Commit n tokens; what ``predict`` says of the last.

        Args:
            features: (n, k * target H), of the tokens before each of them.
            tokens: (n,) int64 target ids.
            view: see ``forward``.
        """
        return self.predict(self(tokens, self.project(features), view)[-1:])

    def level(
        self, tokens: Tensor, parents: Tensor, hidden: Tensor, seen: Tensor, view: HeadView
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One level of a tree, whose nodes are at the same position.

        Args:
            tokens: (n,) int64 target ids.
            parents: (n,) int64, the place of each one's parent in the level before.
            hidden: (m, H) hidden states of that level, see ``predict``.
            seen: (m, s) bool, what that level sees of the s places before.
            view: see ``forward``; of s + n places.

        Returns:
            (n, draft vocabulary) logits, (n, H) hidden states, and (n, s + n) what this level sees.
        """
        itself = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
        seen = torch.cat([seen[parents], itself], dim=1)
        return *self.predict(self(tokens, hidden[parents], view, seen)), seen

    def predict(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """(n, H) outputs -> (n, draft vocabulary) logits, and (n, H) hidden states for the next step."""
        normed = self.norm(output)
        return self.lm_head(normed), normed if self.config.norm_output else output

    def to_target(self, draft_ids: Tensor) -> Tensor:
        """Draft ids -> target ids, elementwise."""
        return draft_ids + self.d2t[draft_ids]

    @property
    def target_ids(self) -> Tensor:
        """(draft vocabulary,) int64, the target id of each draft id."""
        return self.to_target(torch.arange(len(self.d2t), device=self.d2t.device))
