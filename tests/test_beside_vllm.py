"""vLLM writes with the shipped head what this package writes, where the variable EAGLE_VLLM_PYTHON names its Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks import beside_vllm
from eagle.model.ea_model import EaModel
from tests.tiny import load_pair

PYTHON = os.environ.get("EAGLE_VLLM_PYTHON")


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="EAGLE_VLLM_PYTHON names no Python with vLLM")
def test_vllm_writes_the_same_texts_with_the_shipped_head(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompts", "3", "--new-tokens", "24", "--compile", "off", "--vllm-eager"]
    assert beside_vllm.main(["--python", str(PYTHON), *arguments]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if " of 3 " in line]
    assert len(rows) == 5
    assert {row[1] for row in rows} == {"3 of 3"}
    assert all(float(row[2]) > 0 for row in rows if "EAGLE-3" in row[0] or "trees" in row[0])


def test_what_is_no_vllm_is_one_line(tmp_path: Path) -> None:
    asked = {"prompts": [[1, 2]], "new_tokens": 3, "drafted": 2, "head": None, "model": "", "dtype": "float32"}
    with pytest.raises(beside_vllm.InputError, match="No module named 'vllm'"):
        beside_vllm.of_vllm(sys.executable, asked)
    with pytest.raises(beside_vllm.InputError, match="cannot be run"):
        beside_vllm.of_vllm(str(tmp_path / "nothing"), asked)


def test_our_side_writes_the_same_texts_with_every_tree(llama_pair: tuple[Path, Path]) -> None:
    model: EaModel = load_pair(*llama_pair)
    ways = [
        beside_vllm.of_ours(model, [[3, 1, 4], [1, 5]], 12, tree) for tree in (None, beside_vllm.chain(3), "stored")
    ]
    assert ways[0].texts == ways[1].texts == ways[2].texts
    assert ways[0].accepted is None
    assert all((way.accepted or 0) > 0 for way in ways[1:])
