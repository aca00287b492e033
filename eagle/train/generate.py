"""Answers by the target itself: the text a draft head is trained on.

Prompts go through the target's own chat template; temperatures are mixed, so that the head serves greedy and sampled
decoding alike. Which temperature a prompt gets and what is drawn for its answer depend on the seed and the prompt
alone: a run that was interrupted, or is continued with a larger limit, makes the answers that one run would have made,
as far as a forward's rounding does not depend on what is batched with what (in bfloat16 some texts part).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from eagle import assets
from eagle.chat_template import OPTION_HELP, chat_text, require_chat_template, template_arguments
from eagle.data.conversations import Message, read_conversations
from eagle.errors import InputError
from eagle.identity import BASE, Identity, base_identity, unchanged
from eagle.model.loading import existing_device
from eagle.target.base import load_base, load_tokenizer
from eagle.target.target import Target
from eagle.train.answers import ANSWERS, Answer, writing
from eagle.train.decode import Batch, Request, Text
from eagle.train.prompts import Excluded, benchmark_texts, select_prompts
from eagle.train.settings import ComputingSettings
from eagle.train.workers import BatchPlan, Workers, default_workers
from eagle.tree.warping import Warper

# Prompts are sorted by length within so many batches, so that texts decoded together are of similar length; not within
# more, since a run that has enough tokens leaves out the longest prompts of the last of these windows.
SORTED_BATCHES = 4
ENCODED_AT_ONCE = 512


@dataclass(frozen=True)
class GenerateSettings(ComputingSettings):
    """What ``generate`` does; the metadata are the help texts of the program."""

    prompts: str | None = field(
        default=None,
        metadata={
            "help": "JSON lines with prompt, question, messages, turns or conversations, a JSON array of such "
            "records, or hf:owner/name[/config][:split][:column]; default: ShareGPT"
        },
    )
    exclude: tuple[str, ...] = field(
        default=(), metadata={"help": "prompts that overlap with these, beside MT-Bench's, are left out"}
    )
    limit: int | None = field(default=None, metadata={"help": "prompts to answer at most"})
    tokens: int | None = field(default=None, metadata={"help": "begin no answer after so many new tokens"})
    temperatures: tuple[float, ...] = field(
        default=(1.0, 0.6, 0.0), metadata={"help": "each prompt gets one of these; 0 is greedy"}
    )
    weights: tuple[float, ...] = field(default=(0.6, 0.2, 0.2), metadata={"help": "shares of the temperatures"})
    top_p: float = field(default=0.0, metadata={"help": "nucleus mass; 0 and 1 are off"})
    top_k: int = field(default=0, metadata={"help": "most likely tokens kept; 0 is off"})
    max_new_tokens: int = field(default=512, metadata={"help": "of an answer"})
    max_prompt_tokens: int = field(default=512, metadata={"help": "longer prompts are left out"})
    batch_size: int = field(default=128, metadata={"help": "answers decoded together, by all workers"})
    workers: int | None = field(
        default=None,
        metadata={
            "help": "processes of one thread each that share the answers, on a CPU; default: one for each of torch's "
            "threads, as far as half of the memory holds their weights"
        },
    )
    chat_template_kwargs: str | None = field(default=None, metadata={"help": OPTION_HELP})
    seed: int = field(default=0, metadata={"help": "of the order, the temperatures and the draws"})
    shard_size: int = field(default=1000, metadata={"help": "answers in a file"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("limit", "tokens", "max_new_tokens", "max_prompt_tokens", "batch_size", "workers", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
        if len(self.temperatures) != len(self.weights) or not self.temperatures:
            raise InputError(
                f"as many --weights as --temperatures are needed, not {len(self.weights)} and {len(self.temperatures)}"
            )
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise InputError(f"--weights must be 0 or more, and not all 0: {self.weights}")
        for temperature in self.temperatures:
            Warper(temperature, self.top_p, self.top_k)
        template_arguments(self.chat_template_kwargs)

    def shaping(self, base: Identity, dtype: str) -> dict[str, Any]:
        """What decides the answers; the rest only decides how many of them are made, and how fast."""
        return {
            BASE: base,
            "dtype": dtype,
            "prompts": self.prompts or "ShareGPT",
            "exclude": list(self.exclude),
            "temperatures": list(self.temperatures),
            "weights": list(self.weights),
            "top_p": self.top_p,
            "top_k": self.top_k,
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_tokens": self.max_prompt_tokens,
            "chat_template_kwargs": template_arguments(self.chat_template_kwargs),
            "seed": self.seed,
        }

    def temperature(self, prompt: str) -> float:
        """The temperature that a prompt of this digest gets."""
        point = _number(f"{self.seed}/{prompt}/temperature") / 2**63 * sum(self.weights)
        steps = zip(self.temperatures, itertools.accumulate(self.weights), strict=True)
        # Rounding may lift the point to the sum.
        return next((temperature for temperature, upto in steps if point < upto), self.temperatures[-1])


def generate(settings: GenerateSettings) -> None:
    """Make answers until there are enough; what is there already is kept.

    Raises:
        InputError: anything about the settings, the prompts, the model or the folder that does not fit.
    """
    device = existing_device(settings.device)
    path = assets.resolve_base(settings.base_model_path)
    with unchanged(path):
        tokenizer = load_tokenizer(path)
        require_chat_template(tokenizer, path, template_arguments(settings.chat_template_kwargs))
        target = Target(load_base(path, dtype=settings.torch_dtype, device_map={"": device}))
        base = base_identity(path)
    folder = settings.folder / ANSWERS
    described = settings.shaping(base, str(target.dtype).removeprefix("torch."))
    with writing(folder, described, settings.shard_size) as writer:
        prompts = select_prompts(
            read_conversations(settings.prompts), Excluded(benchmark_texts(settings.exclude)), settings.seed
        )
        requests = encode(prompts, tokenizer, settings, target.one_encoding)
        to_do = [request for request in requests if request.key not in writer.keys]
        there, before = len(requests) - len(to_do), writer.tokens
        if writer.keys:
            assets.say(f"{folder}: {len(writer.keys):,} answers of {before:,} tokens are there already")
        count = settings.workers or default_workers(target)
        if count > 1 and target.device.type != "cpu":
            raise InputError(f"--workers {count} is for a CPU, not for {target.device}")
        rows = max(1, min(settings.batch_size, len(to_do)))
        warper = Warper(1.0, settings.top_p, settings.top_k)
        plan = BatchPlan(path, base, settings.torch_dtype, -(-rows // count), warper, settings.max_new_tokens)
        decoder: Batch | Workers = Workers(plan, count) if count > 1 else plan.batch(target)

        def wanted() -> Iterator[Request]:
            for request in in_windows(to_do, SORTED_BATCHES * rows):
                if settings.tokens is not None and before + decoder.made >= settings.tokens:
                    return
                yield request

        with _bar(settings, len(requests), there, before) as bar:
            for text in decoder.decode(wanted()):
                writer.append(_answer(text))
                bar.update(len(text.tokens) if settings.tokens else 1)
                bar.set_postfix({"new tokens/s": f"{decoder.made / max(bar.format_dict['elapsed'], 1e-9):.0f}"})
    assets.say(f"{folder}: {len(writer.keys):,} answers of {writer.tokens:,} tokens")


def encode(
    prompts: Sequence[list[Message]],
    tokenizer: PreTrainedTokenizerBase,
    settings: GenerateSettings,
    context: int | None,
) -> list[Request]:
    """The first ``settings.limit`` prompts that are short enough, through the chat template.

    Says on standard error how many were too long.

    Raises:
        InputError: a prompt that the chat template refuses, or none that is short enough.
    """
    context = context or settings.max_prompt_tokens + settings.max_new_tokens
    room = min(settings.max_prompt_tokens, context - 1)
    arguments = template_arguments(settings.chat_template_kwargs)
    requests: list[Request] = []
    long = 0
    for start in range(0, len(prompts), ENCODED_AT_ONCE):
        if len(requests) == settings.limit:
            break
        some = prompts[start : start + ENCODED_AT_ONCE]
        chats = []
        for prompt in some:
            try:
                chats.append(chat_text(tokenizer, prompt, arguments))
            except InputError as error:
                raise InputError(f"the prompt {prompt[-1]['content'][:60]!r}: {error}") from error
        for prompt, ids in zip(some, tokenizer(chats, add_special_tokens=False).input_ids, strict=True):
            if len(requests) == settings.limit:
                break
            if len(ids) > room:
                long += 1
                continue
            digest = hashlib.sha256(json.dumps(prompt).encode()).hexdigest()[:16]
            temperature = settings.temperature(digest)
            key = f"{digest}@{temperature:g}"
            new_tokens = min(settings.max_new_tokens, context - len(ids))
            requests.append(Request(key, ids, temperature, new_tokens, _number(f"{settings.seed}/{key}")))
    assets.say(f"prompts: {len(requests):,} taken; {long:,} are longer than {room} tokens")
    if not requests:
        raise InputError(f"no prompt has at most {room} tokens; raise --max-prompt-tokens or give other prompts")
    return requests


def in_windows(requests: Sequence[Request], window: int) -> Iterator[Request]:
    """The requests, those of each ``window`` sorted by the length of their prompts."""
    for start in range(0, len(requests), window):
        yield from sorted(requests[start : start + window], key=lambda request: len(request.prompt))


def _number(text: str) -> int:
    """A number below 2**63 that any two texts are unlikely to share."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _answer(text: Text) -> Answer:
    request = text.request
    return Answer(request.key, request.prompt, text.tokens, request.temperature, text.finished)


def _bar(settings: GenerateSettings, prompts: int, there: int, tokens: int) -> tqdm[Any]:
    """Progress in tokens if their number is what ends the run, else in answers."""
    if settings.tokens:
        return tqdm(total=settings.tokens, initial=tokens, unit="token", dynamic_ncols=True, smoothing=0.05)
    return tqdm(total=prompts, initial=there, unit="answer", dynamic_ncols=True, smoothing=0.05)
