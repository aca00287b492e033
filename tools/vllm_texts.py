"""Texts of vLLM at temperature 0, for ``python -m benchmarks.beside_vllm``; run by a Python that has vLLM.

Reads from standard input what to write, as JSON: the model, the head or null, how many tokens are drafted, prompts as
token ids, new tokens at most, whether vLLM is not to compile. Writes to the file named in it the texts, and what
drafting did.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

COUNTS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")


def write(asked: dict[str, Any]) -> None:
    """Do what was asked."""
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # in an environment of its own

    speculative = {"method": "eagle3", "model": asked["head"], "num_speculative_tokens": asked["drafted"]}
    llm = LLM(
        model=asked["model"],
        dtype=asked["dtype"],
        max_model_len=2048,
        max_num_seqs=1,
        enforce_eager=asked["eager"],
        speculative_config=speculative if asked["head"] else None,
        disable_log_stats=False,
    )
    params = SamplingParams(temperature=0.0, max_tokens=asked["new_tokens"])

    def text(prompt: list[int]) -> list[int]:
        (found,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        return list(found.outputs[0].token_ids)

    def counted() -> dict[str, float]:
        values = {metric.name.removeprefix("vllm:spec_decode_"): metric for metric in llm.get_metrics()}
        return {name: values[name].value for name in COUNTS if name in values}

    text(asked["prompts"][0])
    before, began = counted(), time.perf_counter()
    texts = [text(prompt) for prompt in asked["prompts"]]
    seconds = time.perf_counter() - began
    counts = {name: value - before[name] for name, value in counted().items()}
    Path(asked["out"]).write_text(json.dumps({"texts": texts, "seconds": seconds, **counts}))


if __name__ == "__main__":
    write(json.load(sys.stdin))
