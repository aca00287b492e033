"""A target that scores trees otherwise than token by token is found out when it is loaded, whatever it is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eagle.errors import InputError
from eagle.target.check import refuse_wrong_scores
from eagle.target.target import Target
from tests.tiny import ARCHITECTURES, head_files, load_pair, make_base, write_head

# Half of the layers see a window that only the modeling code knows of.
LOCAL = {"attention_types": [[["global", "local"], 3]], "num_layers": 6, "num_heads": 4}


def target_of(architecture: str, folder: Path, dtype: torch.dtype, **overrides: object) -> Target:
    base = make_base(architecture, folder, **overrides)
    kwargs = {"experts_implementation": "eager"} if architecture == "mixtral" else {}
    return Target(AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **kwargs).eval())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_of_these_tests_passes(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    refuse_wrong_scores(target_of(architecture, tmp_path, dtype, max_position_embeddings=2048))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("window", [8, 256])
def test_windows_in_the_modeling_code_are_found_out(window: int, dtype: torch.dtype, tmp_path: Path) -> None:
    target = target_of("gpt_neo", tmp_path, dtype, max_position_embeddings=2048, window_size=window, **LOCAL)
    with pytest.raises(
        InputError, match=r"GPTNeoForCausalLM scores a draft tree otherwise than token by token: behind"
    ):
        refuse_wrong_scores(target)


def test_a_model_that_cannot_be_asked_is_refused_with_what_it_says(tmp_path: Path) -> None:
    """Its buffers end with its context, a whole view of the cache does not."""
    target = target_of("gpt_neo", tmp_path, torch.float64, max_position_embeddings=200, window_size=8, **LOCAL)
    with pytest.raises(InputError, match=r"GPTNeoForCausalLM cannot score a draft tree: .*size"):
        refuse_wrong_scores(target)


def test_a_short_context_is_no_reason_to_refuse(tmp_path: Path) -> None:
    refuse_wrong_scores(target_of("llama", tmp_path, torch.float64, max_position_embeddings=16))


def test_loading_refuses_and_says_how_to_load_all_the_same(tmp_path: Path) -> None:
    base = make_base("gpt_neo", tmp_path / "base", max_position_embeddings=2048, window_size=8, **LOCAL)
    head = write_head(tmp_path / "head", *head_files(base))
    with pytest.raises(InputError, match="verify_target=False"):
        load_pair(base, head)
    model = load_pair(base, head, verify_target=False)
    # And rightly so: behind a window's length the text is another one.
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    stock = model.base_model.generate(
        prompt, do_sample=False, max_new_tokens=60, attention_mask=torch.ones_like(prompt)
    )
    assert model.eagenerate(prompt, max_new_tokens=60).tolist() != stock.tolist()
