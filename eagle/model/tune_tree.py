"""Searching the trees that are fastest for a pair on this machine: ``python -m eagle.model.tune_tree``.

At each temperature, for random shapes of each kind, the exact expected accepted length is measured where rounds begin
in answers to training prompts, for every size at once (growth with the same draws keeps for a smaller size a part of
what it keeps for a larger one). With the time of drafting, of the target's forward over so many nodes and of
verification, all measured here, it gives tokens a second; the best third of the shapes goes on to twice as many further
contexts, until few are left. ``--write`` stores the result beside the head's configuration, where the programs find it.
With ``--drafter`` the trees are those of another drafter: of a sorted draft each with thresholds for its exits, which
are stored with them; of look-up, whose sizes differ from context to context, what is found is printed as arguments.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from eagle.chat_template import (
    TemplateArguments,
    add_template_argument,
    chat_ids,
    require_chat_template,
    template_arguments,
)
from eagle.clock import Clock
from eagle.data.conversations import read_conversations
from eagle.decoding.decoding import Decoding
from eagle.decoding.method import GRAFTED, HEAD, PICKING, SORTED, Method
from eagle.decoding.speculation import Speculation, grafted_shape, offer_of
from eagle.decoding.stored_trees import TREE_FILE, form_of, store
from eagle.drafters.drafter import Drafter
from eagle.drafters.sorted.checkpoint import load_sorted
from eagle.drafters.sorted.compiled import compiled_blocks
from eagle.drafters.sorted.drafter import SortedDrafter
from eagle.drafters.sorted.exits import LastExit, Thresholds
from eagle.errors import InputError
from eagle.folders import local_folder
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.target.text import Text
from eagle.tree.draft_tree import DraftTree
from eagle.tree.shape import DETERMINISTIC, HYBRID, Sampling, TreeShape
from eagle.tree.warping import Warper
from eagle.tuning.acceptance import Candidate, expected_lengths

# Rounds from one context to the next.
EVERY = 4
CONTEXTS_A_PROMPT = 4
REPEATS = 40
LONGEST_PROMPT = 600
# So few shapes are not worth telling apart: the search ends with a stage of at most this many.
FINALISTS = 12
# Probabilities of a node that is worth scoring, where something is looked up.
LEASTS = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
# The same of what a head drafts, and of a node worth expanding; None: all are.
LEASTS_OF_A_HEAD, LEASTS_EXPANDED = (None, 0.02, 0.03, 0.05, 0.08), (None, 0.1, 0.15, 0.2, 0.3)
# Drafting that took so much longer than nine in ten was held up by something else.
HELD_UP = 3
# Largest probabilities above which a node may leave a sorted draft at an exit.
THRESHOLDS_TRIED = (0.2, 0.35, 0.5, 0.7, 0.9, 1.0)
# What has its trees stored beside it.
STORED = (HEAD, SORTED)
# Values of total_token that are tried.
SIZES = (3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 20, 24, 32, 40, 48, 60)


@dataclass
class Trial:
    """A shape, and what was measured of it: expected lengths by size, an entry per context, and drafting seconds and
    nodes of the largest size."""

    candidate: Candidate
    lengths: list[list[float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    nodes: list[float] = field(default_factory=list)

    def speeds(self, rest: Mapping[int, float]) -> dict[int, float]:
        """Tokens a second by size; ``rest`` are the seconds of a round without drafting."""
        most = HELD_UP * sorted(self.seconds)[(len(self.seconds) - 1) * 9 // 10]
        draft = statistics.fmean(min(each, most) for each in self.seconds)
        means = (statistics.fmean(values) for values in zip(*self.lengths, strict=True))
        return {
            size: (1.0 + mean) / (draft + statistics.fmean(between(rest, min(size, count)) for count in self.nodes))
            for size, mean in zip(self.candidate.sizes, means, strict=True)
        }


def between(known: Mapping[int, float], place: float) -> float:
    """The value at a place between known ones, on a line; in front of the first the first's, behind the last the
    last's."""
    places = sorted(known)
    after = bisect.bisect_left(places, place)
    if after == len(places) or places[after] == place or after == 0:
        return known[places[min(after, len(places) - 1)]]
    low, high = places[after - 1], places[after]
    return known[low] + (known[high] - known[low]) * (place - low) / (high - low)


def looked_up_shapes(largest: int, deepest: int, count: int, source: random.Random) -> list[TreeShape]:
    """``count`` different shapes of look-up, drawn at random."""
    choices = itertools.product(range(deepest + 1), (1, 2, 3, 4, 6, 8), (0.01, *LEASTS))
    found = [TreeShape(largest, depth, top_k, least=least) for depth, top_k, least in choices]
    return source.sample(found, min(count, len(found)))


def grafted_shapes(head: TreeShape, largest: int) -> list[TreeShape]:
    """Shapes of look-up in the trees of a head that are the fastest without."""
    size = max(largest, head.total_token)
    return [grafted_shape(head, size, least) for least in LEASTS]


def shapes(
    kind: str, largest: int, deepest: int, count: int, source: random.Random, like: TreeShape | None = None
) -> list[TreeShape]:
    """``count`` different shapes of a kind, drawn at random, every other one of the depth and top_k of ``like``."""
    found: set[TreeShape] = set()
    for draw in range(100 * count):
        if len(found) == count:
            break
        sampling = None
        if kind == HYBRID:
            threshold, early = source.choice((0.02, 0.04, 0.08, 0.15, 0.25)), source.choice((None, 0.25, 0.5, 1.0))
            sampling = Sampling(
                threshold,
                rho=source.choice((0.25, 0.35, 0.5, 0.7)),
                samples=source.choice((0, 1, 2, 3)),
            )
            if early is not None:
                sampling = replace(sampling, early=early * threshold, early_nodes=source.choice((4, 8, 16)))
        depth, top_k = source.randint(0, deepest), source.choice((2, 3, 4, 5, 7, 10))
        if like is not None and draw % 2:
            depth, top_k = like.depth, like.top_k
        least, least_expanded = source.choice(LEASTS_OF_A_HEAD), source.choice(LEASTS_EXPANDED)
        found.add(TreeShape(largest, depth, top_k, sampling, least=least, least_expanded=least_expanded))
    return sorted(found, key=repr)


def training_prompts(
    model: EaModel, file: Path | None, seed: int, arguments: TemplateArguments | None = None
) -> Iterator[Tensor]:
    """Prompts through the chat template, in random order: first human turns of ShareGPT, or of a file.

    Args:
        model: the pair.
        file: of the prompts; None is ShareGPT.
        seed: of the order.
        arguments: for the chat template.

    Raises:
        InputError: as ``read_conversations``; or, when there are no more, too few prompts.
    """
    conversations = read_conversations(None if file is None else str(file))
    texts = [conversation.turns[0] for conversation in conversations]
    random.Random(seed).shuffle(texts)  # noqa: S311  # a reproducible order, not a secret
    tokenizer = model.get_tokenizer()
    require_chat_template(tokenizer, model.base_model_path, arguments)
    for text in texts:
        ids = chat_ids(tokenizer, [{"role": "user", "content": text}], arguments)
        if ids.shape[1] <= LONGEST_PROMPT:
            yield ids.to(model.device)
    raise InputError("too few prompts for the search; give more, or lower --contexts and --shapes")


@torch.inference_mode()
def seconds_without_drafting(
    model: EaModel, drafter: Drafter, shape: TreeShape, sizes: Sequence[int], prompt: Tensor, warper: Warper
) -> dict[int, float]:
    """Median seconds of scoring, warping and verifying a tree, by size; a drafter that looks up may find nothing, so
    then it is a tree of any tokens."""
    method = Method.named(hsd=shape.sampling is not None)
    generator = torch.Generator().manual_seed(0)
    limit = prompt.shape[1] + shape.depth + 64
    decoding = Decoding(
        model.target,
        Speculation(drafter, shape, method.rule),
        Text(prompt, warper, limit, generator=generator),
    )
    largest = decoding.tree if len(decoding.tree) >= max(sizes) else any_tree(max(sizes))
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(REPEATS):
        for size in sizes:
            tree = largest.best(size)
            clock = Clock(model.device)
            scores = model.target.score(tree, decoding.cache)
            decoding.verify(tree, scores.logits)
            times[size].append(clock.lap())
            decoding.cache.keep(())
    return {size: statistics.median(measured) for size, measured in times.items()}


def any_tree(nodes: int) -> DraftTree:
    """A tree of picked tokens, two behind each."""
    parents = [max(0, node - 1) // 2 for node in range(nodes)]
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    return DraftTree(torch.arange(nodes) % 2, torch.tensor(parents), torch.tensor(depths), torch.zeros(nodes))


def search(
    model: EaModel,
    kind: str,
    candidates: list[tuple[Drafter, TreeShape]],
    sizes: tuple[int, ...],
    contexts: int,
    prompts: Iterator[Tensor],
    warper: Warper,
) -> tuple[Drafter, TreeShape, float]:
    """Successive halving; returns the drafter and the shape that are the fastest, and their expected tokens a second.

    Args:
        model: the pair.
        kind: of the trees.
        candidates: what drafts, and shapes of the largest size.
        sizes: values of ``total_token`` to choose from.
        contexts: of the first stage; each further one has twice as many.
        prompts: enough of them.
        warper: of the text.
    """
    rule = Method.named(hsd=kind == HYBRID).rule
    generator = torch.Generator().manual_seed(0)
    trials = [Trial(Candidate(drafter, shape, (rule,), sizes)) for drafter, shape in candidates]
    full = TreeShape(max(sizes), 4, 5, Sampling(0.0, 1.0, 1) if kind == HYBRID else None)
    rest = seconds_without_drafting(model, candidates[0][0], full, sizes, next(prompts), warper)

    def fastest(trial: Trial) -> float:
        return max(trial.speeds(rest).values())

    while True:
        title = f"T={warper.temperature}, {kind}: {len(trials)} shapes"
        with tqdm(total=contexts, desc=title, unit="context", dynamic_ncols=True) as bar:
            while bar.n < contexts:
                for measured in expected_lengths(
                    model.target,
                    next(prompts),
                    [trial.candidate for trial in trials],
                    warper,
                    CONTEXTS_A_PROMPT,
                    EVERY,
                    model.stop_ids(),
                    generator,
                ):
                    for trial, values in zip(trials, measured, strict=True):
                        trial.lengths.append(values.lengths[0])
                        trial.seconds.append(values.seconds)
                        trial.nodes.append(values.scored)
                    bar.update()
        trials.sort(key=fastest, reverse=True)
        for trial in trials[:5]:
            speeds = trial.speeds(rest)
            size = max(speeds, key=speeds.__getitem__)
            print(f"  {speeds[size]:.2f} tokens/s: {described(trial.candidate, size)}")
        if len(trials) <= FINALISTS:
            break
        trials, contexts = trials[: len(trials) // 3], 2 * contexts
    best = trials[0]
    speeds = best.speeds(rest)
    size = max(speeds, key=speeds.__getitem__)
    shape = best.candidate.shape
    levels = min(shape.depth + 1, size - 1)
    return best.candidate.drafter, replace(shape, total_token=size, depth=levels - 1), speeds[size]


def described(candidate: Candidate, size: int) -> str:
    """Its tree, and what else decides its drafts."""
    settled = dict(candidate.drafter.settled) if isinstance(candidate.drafter, SortedDrafter) else {}
    return f"{replace(candidate.shape, total_token=size)} {settled or ''}".rstrip()


def with_exits(
    drafter: SortedDrafter, shapes: Sequence[TreeShape], source: random.Random, compiles: bool
) -> list[tuple[Drafter, TreeShape]]:
    """Each shape with every fixed exit, and with thresholds drawn at random (0: all leave; 1: none does)."""
    blocks = drafter.model.blocks
    fixed = [(1.0,) * exit_number + (0.0,) * (blocks - 1 - exit_number) for exit_number in range(blocks)]
    mixed = list(itertools.product(THRESHOLDS_TRIED, repeat=blocks - 1))
    drawn = [(each, shape) for shape in shapes for each in (*fixed, source.choice(mixed))]
    # One drafter for each, which all its shapes share: it reads every text once.
    drafters = {each: SortedDrafter(drafter.model, Thresholds(each, blocks)) for each, _ in drawn}
    if compiles:
        # What is not compiled could not compete with what is.
        drafter.model.compiled = compiled_blocks(
            drafter.model, {route for each in drafters.values() for route in each.exits.routes(blocks)}
        )
    return [(drafters[each], shape) for each, shape in drawn]


def as_arguments(shape: TreeShape, drafter: str) -> str:
    """The arguments that ask for a shape of another drafter than the head."""
    levels = shape.depth + 1 if drafter in PICKING else shape.depth
    bounds = f"--total-token {shape.total_token} --depth {levels} --top-k {shape.top_k}"
    keys = (("least", shape.least), ("least-expanded", shape.least_expanded))
    return " ".join([bounds, *(f"--{name} {value:g}" for name, value in keys if value is not None)])


def tune(argv: Sequence[str] | None) -> None:
    """The whole program."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_pair_arguments(parse)
    parse.add_argument(
        "--temperature", type=float, nargs="+", default=[1.0, 0.7, 0.3, 0.0], help="of the text; at 0 HSD is EAGLE-3"
    )
    parse.add_argument(
        "--drafter",
        choices=(HEAD, SORTED, *PICKING, *GRAFTED),
        default=HEAD,
        help="whose trees; what is looked up has one kind",
    )
    parse.add_argument("--kind", nargs="+", choices=(DETERMINISTIC, HYBRID), default=[DETERMINISTIC, HYBRID])
    parse.add_argument("--prompts", type=Path, help="JSON lines or a JSON array; default: ShareGPT")
    add_template_argument(parse)
    parse.add_argument("--shapes", type=int, default=32, help="of each kind to begin with")
    parse.add_argument("--contexts", type=int, default=150, help="of the first stage")
    parse.add_argument("--largest", type=int, help="total_token; default 17 on a CPU, 60 elsewhere")
    parse.add_argument("--deepest", type=int, help="depth; default 3 on a CPU, 7 elsewhere, of look-up 11")
    parse.add_argument("--seed", type=int, default=0)
    parse.add_argument("--write", action="store_true", help=f"store the result in {TREE_FILE} beside what drafts")
    args = parse.parse_args(argv)
    for name, least in (("shapes", 1), ("contexts", 1), ("largest", SIZES[0]), ("deepest", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be {least} or more, not {value}")
    if args.write and args.drafter not in STORED:
        raise InputError(f"--write stores the trees of a model; those of {args.drafter} are printed as arguments")
    arguments = template_arguments(args.chat_template_kwargs)
    choice = replace(pair_of(args), drafter=args.drafter)
    model = load(choice)
    drafter = offer_of(model.offers, Method.named(hsd=False, drafter=args.drafter)).drafter
    if isinstance(drafter, SortedDrafter) and choice.sorted_draft is not None and choice.sorted_draft.exit is None:
        # Those that it leaves at so far are not all it has.
        drafter = SortedDrafter(
            load_sorted(choice.sorted_draft.folder, model.target, quantize=choice.quantize), LastExit()
        )
    on_cpu, form = model.device.type == "cpu", form_of(model.target)
    largest = args.largest or (17 if on_cpu else 60)
    deepest = args.deepest if args.deepest is not None else (3 if on_cpu else 7)
    if args.drafter in PICKING and args.deepest is None:
        deepest = 11
    sizes = tuple(size for size in SIZES if size <= largest)
    source = random.Random(args.seed)  # noqa: S311  # a reproducible search, not a secret
    kinds = (DETERMINISTIC,) if args.drafter in PICKING else (DETERMINISTIC, HYBRID)
    for temperature in args.temperature:
        # Hybrid trees have more to choose from, and what is fast without samples is a place to begin.
        stored = choice.stored_trees(form)
        fastest = stored.found.get(DETERMINISTIC, {}).get(temperature)
        for kind in kinds:
            if kind not in args.kind or (temperature == 0 and kind == HYBRID):
                continue
            if args.drafter in PICKING:
                tried = looked_up_shapes(sizes[-1], deepest, args.shapes, source)
            elif args.drafter in GRAFTED:
                tried = grafted_shapes(stored.at(temperature, kind), sizes[-1])
            else:
                tried = shapes(kind, sizes[-1], deepest, args.shapes, source, fastest if kind == HYBRID else None)
            candidates: list[tuple[Drafter, TreeShape]] = [(drafter, shape) for shape in tried]
            if isinstance(drafter, SortedDrafter):
                candidates = with_exits(drafter, tried, source, model.target.compiled is not None)
            prompts = training_prompts(model, args.prompts, args.seed, arguments)
            warper = Warper(temperature)
            best, shape, speed = search(model, kind, candidates, sizes, args.contexts, prompts, warper)
            print(f"T={temperature}, {kind}: {shape}, {speed:.1f} tokens/s expected", flush=True)
            if kind == DETERMINISTIC:
                fastest = shape
            if args.drafter not in STORED:
                print(f"  {as_arguments(shape, args.drafter)}", flush=True)
                continue
            thresholds = None
            if isinstance(best, SortedDrafter):
                thresholds = best.settled["thresholds"]
                print(f"  exits: {' '.join(map(str, thresholds))}", flush=True)
            if args.write:
                written = store(folder_of_trees(choice), form, {kind: {temperature: shape}}, thresholds)
                print(f"written to {written}")


def folder_of_trees(choice: ModelChoice) -> Path:
    """Where the trees of what drafts are stored."""
    if choice.drafted_by == SORTED and choice.sorted_draft is not None:
        return local_folder(choice.sorted_draft.folder, "the sorted draft")
    return local_folder(choice.paths_of_models()[1] or "", "the draft head")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(tune, argv)


if __name__ == "__main__":
    sys.exit(main())
