import json
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle.drafters.eagle3.checkpoint import load_head
from eagle.drafters.eagle3.config import FLAGS
from eagle.drafters.eagle3.head import Eagle3Head
from eagle.drafters.eagle3.writing import LAYOUTS, SPECULATORS, write_head
from eagle.errors import InputError
from eagle.target.target import Target
from eagle.train.batches import batch_of
from eagle.train.export import ExportSettings, export, folder_of
from eagle.train.fit import fit
from eagle.train.steps import unroll
from tests.tiny import HIDDEN, VOCAB, head_files, make_base, stock_model
from tests.tiny import write_head as write_files
from tests.train.fitting import ready
from tests.train.test_steps import packed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flag", [None, *FLAGS])
@pytest.mark.parametrize("draft_vocab", [VOCAB - 2, VOCAB])
def test_what_is_written_is_what_is_read(layout: str, flag: str | None, draft_vocab: int, tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    target = Target(stock_model(base))
    config, state = head_files(base, draft_vocab=draft_vocab, flags={flag: True} if flag else None)
    config |= {"rope_theta": 5e4, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 4]}}
    head = load_head(str(write_files(tmp_path / "head", config, state)), target)
    folder = tmp_path / "again"
    folder.mkdir()
    write_head(head, target, folder, layout, torch.float64, "somebody/base")
    again = load_head(str(folder), target)
    assert again.config.feature_layers == (1, 3, 5)
    for name in ("draft_vocab_size", "target_hidden_size", *FLAGS):
        assert getattr(again.config, name) == getattr(head.config, name)
    assert again.config.layer.rope_parameters == head.config.layer.rope_parameters
    assert torch.equal(again.d2t, head.d2t)
    batch = batch_of(packed())
    features = torch.randn(len(batch.tokens), 3 * head.config.target_hidden_size, dtype=torch.float64)
    for one, other in zip(unroll(head, batch, features, 3), unroll(again, batch, features, 3), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_scaled_rope_and_an_embedding_of_its_own_are_written_too(tmp_path: Path) -> None:
    base = make_base("llama", tmp_path / "base")
    target = Target(stock_model(base))
    config, state = head_files(base)
    config["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    state["embed_tokens.weight"] = torch.randn(VOCAB, config["hidden_size"], dtype=torch.float64)
    head = load_head(str(write_files(tmp_path / "head", config, state)), target)
    for layout in LAYOUTS:
        folder = tmp_path / layout
        folder.mkdir()
        write_head(head, target, folder, layout, torch.float64)
        again = load_head(str(folder), target)
        assert again.config.layer.rope_parameters == head.config.layer.rope_parameters
        assert torch.equal(again.embedding, state["embed_tokens.weight"])


def test_a_training_is_exported_with_its_best_checkpoint_and_a_card(tmp_path: Path) -> None:
    settings = ready(tmp_path)
    exporting = ExportSettings(base_model_path=settings.base_model_path, out=settings.out, verifier="somebody/base")
    with pytest.raises(InputError, match="holds no checkpoint; train a head with"):
        export(exporting)
    fit(settings)
    export(exporting)
    official, speculators = (folder_of(settings.out, layout) for layout in LAYOUTS)
    config = json.loads((official / "config.json").read_text())
    nested = json.loads((speculators / "config.json").read_text())
    # The two layouts count the target's layers differently.
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 2, 2]
    assert nested["eagle_aux_hidden_state_layer_ids"] == [2, 3, 3]
    assert nested["speculators_config"]["verifier"]["name_or_path"] == "somebody/base"
    weights = [load_file(folder / "model.safetensors") for folder in (official, speculators)]
    assert {key.replace("midlayer.", "layers.0.") for key in weights[0]} == set(weights[1]) - {"embed_tokens.weight"}
    assert weights[0]["fc.weight"].dtype == torch.bfloat16
    card = (official / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "| 3 |" in card
    with pytest.raises(InputError, match=r"there is no checkpoint .*step-00000099; those kept are of the steps"):
        export(replace(exporting, step=99))


FOREIGN = """
import sys, torch
from speculators import SpeculatorModel, SpeculatorModelConfig

for folder, inputs in zip(sys.argv[1::2], sys.argv[2::2]):
    config = SpeculatorModelConfig.from_pretrained(folder)
    config.transformer_layer_config._attn_implementation = "eager"
    model = SpeculatorModel.from_pretrained(folder, config=config, dtype=torch.float32)
    given = torch.load(inputs, weights_only=True)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(
            hidden_states=given["features"][None],
            input_ids=given["tokens"][None],
            document_ids=torch.zeros(1, len(given["tokens"]), dtype=torch.int64),
            ttt_steps=given["steps"],
        )
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("verifier_")}
    torch.save({"logits": torch.cat(seen), "state": state, "class": type(model).__name__}, inputs)
"""


@pytest.fixture
def foreign_python(tmp_path: Path) -> Path:
    """A Python with the ``speculators`` package and the transformers it needs, and torch from this one."""
    folder = tmp_path / "speculators"
    venv.create(folder)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    # Nothing is compiled but what is imported.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile"]
    theirs = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    # What it has of its own comes first.
    (theirs / "zz_rest.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    subprocess.run(
        [*pip, "--no-deps", "speculators==0.9.0", "hs-connectors==0.9.0", "transformers==5.19.0"], check=True
    )
    subprocess.run([*pip, "loguru", "openai", "datasets", "pydantic", "pydantic-settings"], check=True)
    return python


@pytest.mark.slow
@pytest.mark.network
def test_the_speculators_package_computes_what_this_one_does(tmp_path: Path, foreign_python: Path) -> None:
    steps = 3
    target = Target(stock_model(make_base("llama", tmp_path / "base")).float())
    batch = batch_of(packed()[2:3])
    heads = {flag: exported(flag, tmp_path, target) for flag in FLAGS_THERE}
    features = torch.randn(len(batch.tokens), 3 * HIDDEN)
    for _, folder in heads.values():
        # There a feature comes with the token after it, and all positions draft.
        torch.save({"features": features, "tokens": batch.tokens.roll(-1), "steps": steps}, folder / "given.pt")
    # In one process: it takes long to start.
    places = [path for _, folder in heads.values() for path in (folder, folder / "given.pt")]
    subprocess.run([foreign_python, "-c", FOREIGN, *places], check=True)
    for flag, (head, folder) in heads.items():
        found = torch.load(folder / "given.pt", weights_only=True)
        assert found["class"] == "Eagle3DraftModel"
        for key, tensor in load_file(folder / "model.safetensors").items():
            assert torch.equal(found["state"][key].to(tensor.dtype), tensor), (flag, key)
        for step, output in enumerate(unroll(head, batch, features, steps)):
            rows = batch.rows[batch.rows + 2 + step <= batch.ends]
            ours = head.lm_head(output)[: len(rows)]
            assert torch.allclose(found["logits"][step][rows], ours, rtol=1e-4, atol=1e-4), (flag, step)


FLAGS_THERE = (None, "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")


def exported(flag: str | None, folder: Path, target: Target) -> tuple[Eagle3Head, Path]:
    """A head of one flag in float32, and where it was written for that package."""
    config, state = head_files(folder / "base", flags={flag: True} if flag else None)
    # It wants the layers to be distinct, which the default ones of so small a target are not.
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [0, 2, 4]}
    head = load_head(str(write_files(folder / "heads" / str(flag), config, state)), target)
    written = folder / f"written-{flag}"
    written.mkdir()
    write_head(head, target, written, SPECULATORS, torch.float32, str(folder / "base"))
    return head, written
