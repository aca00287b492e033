"""How long a text may get, where the model's rotary encoding is stretched."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig

from eagle.errors import ContextFullError
from eagle.model.ea_model import EaModel
from eagle.target.context import context_length
from tests.tiny import VOCAB, head_files, load_pair, make_base, write_head

SHORT, LONG = 40, 128
"""What the configuration states, and what the encoding is stretched to."""


@pytest.fixture(scope="module")
def stretched(tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    """A Qwen3 whose configuration was given YaRN as Qwen's model cards say: the factor is all that was changed."""
    folder = tmp_path_factory.mktemp("yarn")
    base = make_base("qwen3", folder / "base", max_position_embeddings=SHORT)
    file = base / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    config["rope_theta"] = 1e4
    config["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    file.write_text(json.dumps(config))
    return load_pair(base, write_head(folder / "head", *head_files(base)))


@pytest.mark.parametrize("prompt_length", [SHORT - 8, SHORT + 20, LONG - 3])
def test_a_text_longer_than_stated_is_the_stock_models_own_up_to_the_end_of_the_encoding(
    stretched: EaModel, prompt_length: int
) -> None:
    prompt = torch.randint(VOCAB, (1, prompt_length), generator=torch.Generator().manual_seed(0))
    stock = stretched.base_model.generate(
        prompt, do_sample=False, max_new_tokens=LONG - prompt_length, attention_mask=torch.ones_like(prompt)
    )
    assert stock.shape == (1, LONG)
    for generate in (stretched.eagenerate, stretched.naivegenerate):
        assert generate(prompt, max_new_tokens=LONG).tolist() == stock.tolist()


def test_a_prompt_that_fills_the_stretched_encoding_is_refused_in_one_line(stretched: EaModel) -> None:
    prompt = torch.ones(1, LONG, dtype=torch.int64)
    with pytest.raises(ContextFullError, match=f"^the prompt of {LONG} tokens leaves no room .* context of {LONG}$"):
        stretched.eagenerate(prompt)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
HALVES = {"short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LAYERS = ["sliding_attention", "full_attention"]


@pytest.mark.parametrize(
    ("model_type", "stated", "encoding", "context"),
    [
        ("qwen3", 40960, None, 40960),
        ("qwen3", 40960, YARN, 131072),
        # Of older configurations: the name of the kind, and no length before stretching.
        ("qwen2", 32768, {"type": "yarn", "factor": 4.0}, 131072),
        # Raised by hand as well, or published with the length after stretching.
        ("qwen3", 131072, YARN, 131072),
        ("qwen3", 200000, YARN, 200000),
        ("llama", 4096, {"rope_type": "linear", "factor": 4.0}, 16384),
        ("llama", 131072, {"rope_type": "llama3", **LLAMA3}, 131072),
        ("llama", 4096, {"rope_type": "dynamic", "factor": 4.0}, 4096),
        ("phi3", 131072, {"rope_type": "longrope", "original_max_position_embeddings": 4096, **HALVES}, 131072),
        (
            "gemma3_text",
            131072,
            {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}},
            131072,
        ),
        (
            "modernbert-decoder",
            8192,
            {
                "full_attention": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8192},
                "sliding_attention": {"rope_type": "default"},
            },
            16384,
        ),
    ],
)
def test_the_context_is_what_the_encoding_is_made_for(
    model_type: str, stated: int, encoding: dict | None, context: int
) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    layers = {"layer_types": LAYERS, "num_hidden_layers": 2} if encoding and "full_attention" in encoding else {}
    rope = {} if encoding is None else {"rope_parameters": {"rope_theta": 1e4, **encoding} if not layers else encoding}
    config = AutoConfig.for_model(model_type, max_position_embeddings=stated, **sizes, **layers, **rope)
    assert context_length(config) == context


def test_a_model_of_learned_positions_has_as_many_and_one_of_none_has_no_limit() -> None:
    assert context_length(AutoConfig.for_model("gpt2", n_positions=77)) == 77
    assert context_length(AutoConfig.for_model("bloom")) is None
