"""Tiny real checkpoints: stock architectures with small vocabularies and weights large enough to have opinions."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from eagle.drafters.eagle3.config import default_feature_layers
from eagle.drafters.eagle3.head import Eagle3Head, HeadConfig
from eagle.drafters.sorted.checkpoint import SortedConfig, first_layers, write_sorted
from eagle.model.ea_model import EaModel
from eagle.target.target import Target

VOCAB = 8
LAYERS = 6
HIDDEN = 16
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}
WINDOW = 5
ARCHITECTURES: dict[str, dict] = {
    "llama": HEADS,
    "qwen2": HEADS,
    "qwen2-mixed": HEADS | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    "qwen3": HEADS,
    "mistral": HEADS | {"sliding_window": None},
    "mistral-window": HEADS | {"sliding_window": WINDOW},
    "mixtral": HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "gemma3_text": HEADS | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 3},
    "gpt_neox": {"num_attention_heads": 4, "rotary_pct": 0.5},
    "phi3": HEADS,
}


def compiles() -> bool:
    """Whether this machine has what compiling takes: a C++ compiler and the headers of Python."""
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return headers.exists() and any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def make_base(architecture: str, folder: Path, seed: int = 0, **overrides: object) -> Path:
    """Save a tiny base model in float64 and return its folder."""
    torch.manual_seed(seed)
    model_type = architecture.partition("-")[0]
    config = AutoConfig.for_model(model_type, **COMMON | ARCHITECTURES.get(architecture, {}) | overrides)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    # Token 0 is text like any other: a prompt may hold it.
    model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    return folder


def write_letters(folder: Path, vocab: int = VOCAB) -> Path:
    """Put a tokenizer beside a tiny model: a letter a token, from a on."""
    letters = {chr(ord("a") + token): token for token in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(vocab=letters, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a").save_pretrained(folder)
    return folder


def make_draft_model(folder: Path, vocab: int = VOCAB, layers: int = 2, seed: int = 5, **overrides: object) -> Path:
    """Save a small draft model for a tiny base with letters for tokens."""
    make_base("llama", folder, seed=seed, vocab_size=vocab, num_hidden_layers=layers, **overrides)
    return write_letters(folder, vocab)


def stock_model(folder: Path) -> PreTrainedModel:
    """The model as transformers loads it, in float64."""
    kwargs = {"experts_implementation": "eager"} if "mixtral" in (folder / "config.json").read_text() else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **kwargs).eval()


def head_files(
    base: Path,
    *,
    layout: str = "official",
    draft_vocab: int = VOCAB - 2,
    seed: int = 1,
    weight: float = 0.4,
    flags: dict[str, bool] | None = None,
) -> tuple[dict, dict[str, torch.Tensor]]:
    """The configuration and tensors of a random head for a base model."""
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(base)
    vocab, hidden = config.vocab_size, config.hidden_size
    layer = {
        "hidden_size": hidden,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    }
    flags = flags or {}
    target = Target(stock_model(base))
    head = Eagle3Head(
        HeadConfig(LlamaConfig(**layer), draft_vocab, hidden, default_feature_layers(config.num_hidden_layers), **flags)
    )
    state = {key: torch.randn(tensor.shape, dtype=torch.float64) * weight for key, tensor in head.state_dict().items()}
    if draft_vocab != vocab:
        kept = torch.randperm(vocab)[:draft_vocab].sort().values
        state["d2t"] = kept - torch.arange(draft_vocab)
        state["t2d"] = torch.zeros(vocab, dtype=torch.bool).index_fill(0, kept, True)
    if layout == "official":
        return layer | {"draft_vocab_size": draft_vocab} | flags, state
    state = {key.replace("midlayer.", "layers.0."): tensor for key, tensor in state.items()}
    state["embed_tokens.weight"] = target.embedding.detach().clone()
    nested = {"speculators_model_type": "eagle3", "transformer_layer_config": layer, "draft_vocab_size": draft_vocab}
    return nested | flags, state


def write_head(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> Path:
    """Save a head as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "model.safetensors")
    return folder


def make_pair(folder: Path, architecture: str = "llama", layout: str = "official", **head: object) -> tuple[Path, Path]:
    """Save a base model and a head for it."""
    base = make_base(architecture, folder / "base")
    return base, write_head(folder / "head", *head_files(base, layout=layout, **head))


CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def make_chat_pair(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> tuple[Path, Path]:
    """A pair with a byte-level tokenizer and a chat template, whose texts end at times by themselves."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = chat_template
    base = make_base(
        "llama",
        folder / "base",
        vocab_size=len(vocab),
        eos_token_id=1,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    fast.save_pretrained(base)
    return base, write_head(folder / "head", *head_files(base, draft_vocab=100, weight=0.2))


def make_chat_draft(base: Path, folder: Path) -> Path:
    """A small draft model for the base of a chat pair."""
    make_base("llama", folder, seed=5, vocab_size=258, num_hidden_layers=2, max_position_embeddings=2048)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def load_pair(base: Path, head: Path, **kwargs: object) -> EaModel:
    """Load a pair in float64 on the CPU with a small tree."""
    kwargs = {"total_token": 8, "depth": 2, "top_k": 3, "dtype": torch.float64, "device_map": "cpu"} | kwargs
    if "mixtral" in (base / "config.json").read_text():
        kwargs["experts_implementation"] = "eager"
    return EaModel.from_pretrained(base_model_path=str(base), ea_model_path=str(head), **kwargs)


def make_sorted_draft(base: Path, folder: Path, exits: tuple[int, ...] = (1, 2, 3)) -> Path:
    """The first layers of a base model as a sorted draft that nobody trained, of all its tokens."""
    target = Target(stock_model(base))
    draft_ids = torch.arange(target.vocab_size)
    config = SortedConfig.for_target(target, exits, len(draft_ids), own_ends=False)
    folder.mkdir()
    write_sorted(folder, first_layers(target.model, exits[-1]), config, draft_ids, torch.float32)
    return folder
