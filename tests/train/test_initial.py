from pathlib import Path

import pytest
import torch

from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.head import HeadConfig
from eagle.errors import InputError
from eagle.target.target import Target
from eagle.train.batches import batch_of
from eagle.train.initial import new_head, shape_for
from eagle.train.steps import unroll
from eagle.train.vocab import DraftVocabulary
from tests.tiny import HIDDEN, LAYERS, VOCAB, head_files, make_base, make_pair, stock_model, write_head
from tests.train.test_steps import packed

VOCABULARY = DraftVocabulary.of(torch.tensor([0, 2, 3, 6]), VOCAB)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mixtral", "gemma3_text", "gpt_neox"])
def test_a_head_starts_from_what_its_target_has(architecture: str, tmp_path: Path) -> None:
    target = Target(stock_model(make_base(architecture, tmp_path)))
    head, left = new_head(target, shape_for(target, 4, None, {}), VOCABULARY, "target", seed=0)
    last = target.model.base_model.layers[-1] if architecture != "gpt_neox" else None
    if architecture in ("llama", "qwen3", "gemma3_text"):
        assert not left
        query = head.midlayer.self_attn.q_proj.weight
        torch.testing.assert_close(query[:, HIDDEN:], last.self_attn.q_proj.weight.detach())
        assert not query[:, :HIDDEN].any()
        hidden = torch.randn(3, HIDDEN, dtype=torch.float64)
        # Also where a model stores the scale of its norms in another way.
        torch.testing.assert_close(head.norm(hidden), target.model.base_model.norm(hidden), rtol=1e-4, atol=1e-4)
    elif architecture == "mixtral":
        assert left == ["gate_proj", "up_proj", "down_proj"]
    else:
        assert "q_proj" in left
    output = target.model.get_output_embeddings().weight.detach()
    torch.testing.assert_close(head.lm_head.weight.detach(), output[VOCABULARY.target_ids])
    assert target.feature_layers == (2, LAYERS // 2, LAYERS - 3)


def test_random_heads_follow_the_seed(tmp_path: Path) -> None:
    target = Target(stock_model(make_base("llama", tmp_path)))
    heads = [new_head(target, shape_for(target, 4, None, {}), VOCABULARY, "random", seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(heads[0].fc.weight, heads[1].fc.weight)
    assert not torch.equal(heads[0].fc.weight, heads[2].fc.weight)


def test_what_does_not_fit_the_target_is_an_error(tmp_path: Path) -> None:
    target = Target(stock_model(make_base("llama", tmp_path)))
    with pytest.raises(InputError, match=rf"feature_layers \[1, 9\] do not fit this target.*0 .* to {LAYERS}"):
        shape_for(target, 4, (1, 9), {})
    with pytest.raises(InputError, match=f"the draft vocabulary has 99 tokens, more than the target's {VOCAB}"):
        shape_for(target, 99, None, {})
    with pytest.raises(InputError, match=r"initial must be target or random, or name a head; .* 'zero'"):
        new_head(target, shape_for(target, 4, None, {}), VOCABULARY, "zero", 0)


def test_a_head_goes_on_from_another_with_another_vocabulary(tmp_path: Path) -> None:
    base, folder = make_pair(tmp_path)
    target = Target(stock_model(base))
    other = load_head(str(folder), target)
    of_other = (torch.arange(len(other.d2t)) + other.d2t).tolist()
    shape = HeadConfig(other.config.layer, 4, HIDDEN, other.config.feature_layers)
    vocabulary = DraftVocabulary.of(
        torch.tensor([*sorted(set(range(VOCAB)) - set(of_other))[:1], *of_other[1:4]]), VOCAB
    )
    head, left = new_head(target, shape, vocabulary, str(folder), seed=0)
    assert not left
    torch.testing.assert_close(head.midlayer.mlp.up_proj.weight.detach(), other.midlayer.mlp.up_proj.weight.detach())
    torch.testing.assert_close(head.fc.weight.detach(), other.fc.weight.detach())
    output = target.model.get_output_embeddings().weight
    for row, token in zip(head.lm_head.weight, vocabulary.target_ids.tolist(), strict=True):
        expected = other.lm_head.weight[of_other.index(token)] if token in of_other else output[token]
        torch.testing.assert_close(row.detach(), expected.detach())
    with pytest.raises(InputError, match="give the same --feature-layers"):
        new_head(target, shape_for(target, 4, (1, 2, 3), {}), vocabulary, str(folder), 0)
    with pytest.raises(InputError, match=f"of a target with {VOCAB + 1} tokens, this one has {VOCAB}"):
        new_head(target, shape, DraftVocabulary.of(torch.arange(4), VOCAB + 1), str(folder), 0)


def test_a_head_goes_on_with_its_own_rope_and_embedding(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    target = Target(stock_model(base))
    config, state = head_files(base)
    config["rope_theta"] = 5e4
    state["embed_tokens.weight"] = torch.randn(VOCAB, config["hidden_size"], dtype=torch.float64)
    folder = write_head(tmp_path / "head", config, state)
    other = load_head(str(folder), target)
    shape = shape_for(target, len(other.d2t), other.config.feature_layers, {})
    assert shape.layer.rope_parameters["rope_theta"] != 5e4
    vocabulary = DraftVocabulary.of(other.target_ids, VOCAB)
    head, _ = new_head(target, shape, vocabulary, str(folder), seed=0)
    batch = batch_of(packed())
    features = torch.randn(len(batch.tokens), 3 * HIDDEN, dtype=torch.float64)
    for ours, theirs in zip(unroll(head, batch, features, 3), unroll(other, batch, features, 3), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
