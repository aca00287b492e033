"""int8 targets: near the layer, exact where it counts, and refused where there are no such products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from eagle.drafters.sorted.exits import SortedDraft
from eagle.errors import InputError
from eagle.target.base import load_base
from eagle.target.int8 import ENGINE, INT8, LEVELS, Int8Linear, largest_code, quantize_weights, quantized
from eagle.target.loading import load_target
from eagle.target.packed import packed_bytes, parameter_count
from eagle.tree.draft_tree import DraftTree, root_only
from eagle.tree.shape import TreeShape
from eagle.verification import RULES
from tests.decoding.rounds import round_distances
from tests.tiny import compiles, load_pair, make_base, make_pair, make_sorted_draft

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
pytestmark = pytest.mark.skipif(
    ENGINE not in torch.backends.quantized.supported_engines, reason="no FBGEMM in this build of torch"
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"))


def loud(rows: int, width: int) -> torch.Tensor:
    """Rows of different sizes and offsets."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-2, 2, rows)[:, None]
    return scale * (torch.randn(rows, width, generator=generator) + torch.linspace(-1, 1, rows)[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_near_the_layers(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 33, bias=bias, dtype=dtype), loud(9, 96).to(dtype)
    with torch.inference_mode():
        expected, found = linear(x).float(), Int8Linear(linear)(x)
    assert found.dtype == dtype
    # A weight is wrong by half a step of its row at most, an activation too.
    apart = (found.float() - expected).norm(dim=1) / expected.norm(dim=1)
    assert apart.max() < 0.03


def test_a_layer_of_such_numbers_is_exact() -> None:
    """Weights and activations that need no rounding, up to the largest there are."""
    most = largest_code()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-most, most + 1, (5, 64), generator=generator).float()
    weight[:, 0], weight[3] = most, most
    rows = torch.randint(LEVELS + 1, (4, 64), generator=generator).float()
    rows[:, 1], rows[:, 2], rows[2, 3:] = 0, LEVELS, LEVELS
    linear = nn.Linear(64, 5, bias=False)
    linear.weight = nn.Parameter(weight)
    with torch.inference_mode():
        torch.testing.assert_close(Int8Linear(linear)(rows), rows @ weight.T, rtol=1e-6, atol=0)


def test_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    layer, x = Int8Linear(nn.Linear(96, 33)), loud(9, 96)
    with torch.inference_mode():
        together = layer(x)
        for rows in (slice(0, 1), slice(4, 5), slice(3, 7), slice(8, 9)):
            assert torch.equal(layer(x[rows]), together[rows])


def test_rows_that_say_nothing() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 5)
    layer = Int8Linear(linear)
    with torch.inference_mode():
        torch.testing.assert_close(layer(torch.zeros(2, 64)), linear.bias.expand(2, -1))
        torch.testing.assert_close(
            layer(torch.full((1, 64), 3.0)), linear(torch.full((1, 64), 3.0)), rtol=0.05, atol=0.05
        )
        assert layer(torch.full((1, 64), torch.nan)).isnan().all()


def test_a_tree_is_scored_as_its_paths_are(pair: tuple[Path, Path]) -> None:
    """Attention alone rounds a node otherwise beside others; products with weights do not."""
    target = load_pair(*pair, dtype=torch.float32, quantize=INT8).target
    assert quantized(target.model)
    ids = torch.tensor([0, 0, 0, 1, 2])
    tree = DraftTree(torch.tensor([5, 3, 2, 6, 1]), ids, torch.tensor([0, 1, 1, 2, 2]), torch.zeros(5))
    with torch.inference_mode():
        cache = target.new_cache(40)
        target.prefill(PROMPT, cache, features=False)
        together = target.score(tree, cache, features=False).logits
        cache.keep(())
        for path in ((0, 1, 3), (0, 2, 4)):
            for node in path:
                alone = target.score(root_only(int(tree.tokens[node])), cache, features=False).logits[0]
                torch.testing.assert_close(alone, together[node], rtol=0, atol=0.02 * float(together.std()))
                cache.keep((0,))
            cache.commit_prompt(PROMPT.shape[1])


@pytest.mark.parametrize("tree", ["deterministic", "hybrid"])
def test_rounds_have_the_quantised_models_law(pair: tuple[Path, Path], tree: str) -> None:
    model = load_pair(*pair, dtype=torch.float32, quantize=INT8)
    # As near as float32, but where attention, which differs with the number of rows, lets a rounding fall otherwise.
    assert max(round_distances(model, tree, [RULES["tokenwise"], RULES["hsd"]], (1.0, 0.0, 3), 2)) < 5e-3


def test_greedy_texts_are_the_baselines(pair: tuple[Path, Path]) -> None:
    model = load_pair(*pair, dtype=torch.float32, quantize=INT8)
    expected = model.naivegenerate(PROMPT, max_new_tokens=40)
    found, _, _, info = model.eagenerate(PROMPT, max_new_tokens=40, tree=TreeShape(6, 2, 2), log=True)
    assert torch.equal(found, expected)
    assert sum(info["accept_length"]) > 0


def test_a_sorted_draft_is_quantised_with_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, head = make_base("llama", tmp_path / "base", tie_word_embeddings=True), pair[1]
    draft = SortedDraft(str(make_sorted_draft(base, tmp_path / "sorted")), thresholds=(0.2, 1.0))
    model = load_pair(base, head, dtype=torch.float32, quantize=INT8, sorted_draft=draft)
    drafter = model.offers["sorted"].drafter
    assert all(quantized(layer) for layer in drafter.model.layers)
    expected = model.naivegenerate(PROMPT, max_new_tokens=40)
    found, _, _, info = model.eagenerate(PROMPT, max_new_tokens=40, drafter="sorted", log=True)
    assert torch.equal(found, expected)
    assert sum(info["accept_length"]) > 0


def test_without_the_targets_output_layer_a_sorted_draft_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    draft = SortedDraft(str(make_sorted_draft(pair[0], tmp_path / "sorted")))
    with pytest.raises(InputError, match="nothing is left of the target's output layer"):
        load_pair(*pair, dtype=torch.float32, quantize=INT8, sorted_draft=draft)


@pytest.mark.skipif(not compiles(), reason="no C++ compiler, or no headers of Python")
def test_compiled_it_is_the_same_model(pair: tuple[Path, Path]) -> None:
    eager, compiled = (load_pair(*pair, dtype=torch.float32, quantize=INT8, compile=how) for how in ("off", "on"))
    assert compiled.target.compiled is not None
    assert torch.equal(*(model.eagenerate(PROMPT, max_new_tokens=40) for model in (eager, compiled)))


def test_its_weights_take_a_byte_each(pair: tuple[Path, Path]) -> None:
    whole, small = (load_pair(*pair, dtype=torch.float32, quantize=how).base_model for how in (None, INT8))
    assert parameter_count(small) == parameter_count(whole)
    assert packed_bytes(small) * 4 == packed_bytes(whole)


def test_a_checkpoint_in_bfloat16_is_quantised_from_float32_unless_asked(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    load_base(str(base), dtype=torch.bfloat16).save_pretrained(base)
    assert load_target(str(base)).dtype == torch.bfloat16
    assert load_target(str(base), INT8).dtype == load_target(str(base), INT8, dtype="auto").dtype == torch.float32
    assert load_target(str(base), INT8, verify=False, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_what_is_not_quantised_is_refused(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"not for weights in torch\.float64"):
        quantize_weights(nn.Sequential(nn.Linear(4, 4, dtype=torch.float64)))
    with pytest.raises(InputError, match="for models on the CPU, not on meta"):
        quantize_weights(nn.Sequential(nn.Linear(4, 4, device="meta")))
    with pytest.raises(InputError, match="quantize must be None or one of int8, not 'int4'"):
        load_pair(*pair, quantize="int4")
    with pytest.raises(InputError, match="cannot be saved"):
        load_pair(*pair, dtype=torch.float32, quantize=INT8).base_model.state_dict()
    monkeypatch.setattr("eagle.target.int8.ENGINE", "none")
    with pytest.raises(InputError, match="x86 CPUs only"):
        quantize_weights(nn.Sequential(nn.Linear(4, 4)))
