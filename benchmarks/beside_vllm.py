"""vLLM with the same target and the same head: ``python -m benchmarks.beside_vllm --python VENV/bin/python``.

Texts at temperature 0, first turns of MT-Bench, one after the other: by vLLM without and with the head as its
speculative model, which drafts a chain; and here without a head, with the same chain, and with the trees stored with
the head. In float32, where rounding seldom decides, texts are compared token by token; speeds in ``--dtype bfloat16``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.decode import prompts
from eagle import assets
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.model.loading import add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.tree.shape import TreeShape

TEXTS = Path(__file__).parents[1] / "tools" / "vllm_texts.py"


@dataclass(frozen=True)
class Did:
    """What one way did.

    Attributes:
        texts: new tokens of each.
        seconds: of all.
        accepted: a draft, in tokens; None where nothing is drafted.
    """

    texts: list[list[int]]
    seconds: float
    accepted: float | None

    @property
    def tokens_per_second(self) -> float:
        """Of all texts together."""
        return sum(map(len, self.texts)) / self.seconds


def of_vllm(python: str, asked: dict[str, Any]) -> Did:
    """Have vLLM write texts.

    Raises:
        InputError: it did not.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "texts.json"
        command = [python, str(TEXTS)]
        try:
            done = subprocess.run(
                command, input=json.dumps(asked | {"out": str(out)}), capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise InputError(f"{python} cannot be run: {error}") from error
        if not out.is_file():
            lines = done.stderr.strip().splitlines() or ["nothing said"]
            # Its processes go on talking behind what went wrong.
            said = next((line for line in lines if "Error" in line), lines[-1])
            raise InputError(f"vLLM wrote no texts: {said}")
        found = json.loads(out.read_text())
    drafts = found.get("num_drafts")
    return Did(found["texts"], found["seconds"], found["num_accepted_tokens"] / drafts if drafts else None)


def of_ours(model: EaModel, inputs: Sequence[list[int]], new_tokens: int, tree: TreeShape | str | None) -> Did:
    """Write texts here: with a tree, with the stored ones (``stored``), or without (None)."""
    texts: list[list[int]] = []
    accepted = rounds = 0
    began = time.perf_counter()
    for prompt in inputs:
        ends: dict[str, Any] = {"max_new_tokens": new_tokens, "max_length": len(prompt) + new_tokens, "log": True}
        if tree is None:
            found: Any = model.naivegenerate([prompt], **ends)
        else:
            found = model.eagenerate([prompt], **ends, tree=None if isinstance(tree, str) else tree)
        texts.append(found[0][0, len(prompt) :].tolist())
        accepted += sum(found[3]["accept_length"])
        rounds += len(found[3]["accept_length"])
    return Did(texts, time.perf_counter() - began, accepted / rounds if tree is not None else None)


def chain(drafted: int) -> TreeShape:
    """The tree that vLLM drafts."""
    return TreeShape(drafted + 1, drafted - 1, 1)


def ways(model: EaModel, asked: dict[str, Any], python: str) -> dict[str, Did]:
    """All of them, by name."""
    inputs, new_tokens, drafted = asked["prompts"], asked["new_tokens"], asked["drafted"]
    found: dict[str, Did] = {
        "vLLM": of_vllm(python, asked | {"head": None}),
        f"vLLM, EAGLE-3, a chain of {drafted}": of_vllm(python, asked),
    }
    ours: dict[str, TreeShape | str | None] = {
        "here": None,
        f"here, EAGLE-3, a chain of {drafted}": chain(drafted),
        "here, its trees": "stored",
    }
    for name, tree in ours.items():
        of_ours(model, inputs[:1], new_tokens, tree)
        found[name] = of_ours(model, inputs, new_tokens, tree)
    return found


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add_pair_arguments(parse)
    parse.add_argument("--python", required=True, help="of the virtual environment in which vLLM is")
    parse.add_argument("--prompts", type=int, default=10)
    parse.add_argument("--new-tokens", type=int, default=64)
    parse.add_argument("--drafted", type=int, default=3, help="tokens of a chain")
    parse.add_argument("--vllm-eager", action="store_true", help="vLLM does not compile")
    parse.set_defaults(dtype="float32")
    args = parse.parse_args(argv)
    if min(args.prompts, args.new_tokens, args.drafted) < 1:
        raise InputError("--prompts, --new-tokens and --drafted must be 1 or more")
    base, head = assets.resolve_pair(args.base_model_path, args.ea_model_path)
    model = load(pair_of(args))
    asked = {
        "model": str(base),
        "head": str(head),
        "dtype": str(model.target.dtype).removeprefix("torch."),
        "drafted": args.drafted,
        "new_tokens": args.new_tokens,
        "eager": args.vllm_eager,
        "prompts": [prompt[0].tolist() for prompt in prompts(model, args.prompts, None)],
    }
    found = ways(model, asked, args.python)
    plain = found["here"].texts
    print("| | equal texts | accepted a draft | new tokens/s |\n| --- | --- | --- | --- |")
    for name, did in found.items():
        equal = sum(one == other for one, other in zip(did.texts, plain, strict=True))
        accepted = "" if did.accepted is None else f"{did.accepted:.3f}"
        print(f"| {name} | {equal} of {len(plain)} | {accepted} | {did.tokens_per_second:.1f} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
