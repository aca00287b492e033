"""The speed of every method in every form of the weights, as one table: ``python -m benchmarks.forms``.

All models are loaded in one process and answer the same prompts in turn, each time another one first, so drift of the
machine hits all. A method is compared with autoregressive decoding in the same form, int8 with int8: everything that
speculative decoding gets, the baseline gets. In brackets 95 % bootstrap intervals over prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.decode import Method, contest, measure, prompts, ratio
from eagle.chat_template import add_template_argument, template_arguments
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.target.compiling import OFF, ON
from eagle.target.int8 import INT8
from eagle.tree.shape import DETERMINISTIC, HYBRID, TreeShape

FORMS = {"eager": (OFF, None), "compiled": (ON, None), "int8, compiled": (ON, INT8)}
"""Of each: whether it is compiled, and how it is quantised."""
HEAD = ("T", "form", "method", "new tokens/s", "tokens a round", "over autoregressive", "over EAGLE-3", "over eager")
METHODS = {"EAGLE-3": DETERMINISTIC, "HSD": HYBRID}


def loaded(choice: ModelChoice, names: Sequence[str]) -> dict[str, tuple[EaModel, ModelChoice]]:
    """The pair in those forms that this machine has."""
    found = {}
    for name in names:
        compile, quantize = FORMS[name]
        form = replace(choice, compile=compile, quantize=quantize)
        model = load(form)
        if compile == ON and model.target.compiled is None:
            print(f"{name}: left out, this machine compiles nothing", file=sys.stderr)
        else:
            found[name] = (model, form)
    return found


def rows(
    models: dict[str, tuple[EaModel, ModelChoice]], inputs: list[torch.Tensor], temperature: float, new_tokens: int
) -> list[tuple[str, ...]]:
    """Let all forms and methods take part, and describe them."""
    racing: dict[tuple[str, str], tuple[EaModel, TreeShape | None]] = {}
    for form, (model, choice) in models.items():
        entries = {method: (model, replace(choice, kind=kind)) for method, kind in METHODS.items()}
        racing |= {(form, method): entry for method, entry in contest(entries, temperature).items()}
    by_name = {f"{form}/{method}": entry for (form, method), entry in racing.items()}
    did = dict(zip(racing, measure(by_name, inputs, temperature, new_tokens), strict=True))
    table: list[tuple[str, ...]] = []
    for (form, method), what in did.items():
        plain, eagle, eager = (did.get(key) for key in ((form, "autoregressive"), (form, "EAGLE-3"), ("eager", method)))
        others: tuple[tuple[Method | None, bool], ...] = (
            (plain, method != "autoregressive"),
            (eagle, method == "HSD"),
            (eager, form != "eager"),
        )
        table.append(
            (
                f"{temperature:g}",
                form,
                method,
                f"{sum(what.tokens) / sum(what.seconds):.1f}",
                f"{what.tau():.2f}",
                *("" if other is None or not shown else ratio(other, what) for other, shown in others),
            )
        )
    return table


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_arguments(parse)
    parse.add_argument("--forms", nargs="+", choices=tuple(FORMS), default=list(FORMS))
    parse.add_argument("--temperature", type=float, nargs="+", default=[1.0, 0.7, 0.0])
    parse.add_argument("--prompts", type=int, default=20, help="first turns of MT-Bench, evenly spread")
    parse.add_argument("--new-tokens", type=int, default=48)
    add_template_argument(parse)
    args = parse.parse_args(argv)
    if min(args.prompts, args.new_tokens) < 1:
        raise InputError("--prompts and --new-tokens must be 1 or more")
    models = loaded(pair_of(args), args.forms)
    if not models:
        raise InputError("there is nothing to compare")
    model = next(iter(models.values()))[0]
    inputs = prompts(model, args.prompts, template_arguments(args.chat_template_kwargs))
    level = torch.backends.cpu.get_cpu_capability() if model.device.type == "cpu" else torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    dtypes = ", ".join(f"{form} in {each.target.dtype}" for form, (each, _) in models.items())
    print(f"{dtypes}, {model.device}, {level}, {threads} threads, torch {torch.__version__}")
    for warm, _ in models.values():
        warm.eagenerate(inputs[0], max_new_tokens=8)
    print(f"\n| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for temperature in args.temperature:
        for row in rows(models, inputs, temperature, args.new_tokens):
            print(f"| {' | '.join(row)} |", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
