"""What the server costs, and what it spares: ``python -m benchmarks.serving --url http://127.0.0.1:8000``.

Beside a server of the same pair that runs (``python -m eagle.serving``). First the same texts through it and by
``EaModel`` alone, in turn: seconds to the first token, and new tokens a second. Then the second turns of long
conversations, whose first turns the server has just answered, beside conversations as long that it has never seen.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

import torch

from benchmarks.decode import Method, prompts, ratio
from eagle import assets
from eagle.chat_template import Message, chat_ids
from eagle.data.questions import load_questions
from eagle.decoding.method import Method as Drafting
from eagle.decoding.sampling_params import SamplingParams
from eagle.errors import InputError
from eagle.model.ea_model import EaModel
from eagle.model.loading import add_pair_arguments, load, pair_of
from eagle.program import run_program

PATIENCE = 600
# Between two texts: the workers of who wrote the last one look for more work before they sleep, on cores that the next
# one needs.
PAUSE = 0.05
METHOD = "hsd"
FOLLOWING = "Now say the same in one sentence."


@dataclass
class Way:
    """What one way of answering took.

    Attributes:
        first: to the first tokens of each text.
        whole: to the end of each.
        remembered: tokens of prompts that were not read again.
    """

    first: Method = field(default_factory=Method)
    whole: Method = field(default_factory=Method)
    remembered: int = 0

    def add(self, first: float, whole: float, tokens: int) -> None:
        """Take down a text: seconds to its first tokens and to its end, and how many it has."""
        self.first.seconds.append(first)
        self.first.tokens.append(1)
        self.whole.seconds.append(whole)
        self.whole.tokens.append(tokens)


class Client:
    """Asks a server for one text after the other, over one connection.

    It is the standard library's, for it has the server's cores: what it takes is not the server's.

    Args:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        scheme, self._address, *_ = urlsplit(url)
        if scheme != "http" or not self._address:
            raise InputError(f"--url {url}: it must be like http://127.0.0.1:8000")
        self._connection = http.client.HTTPConnection(self._address, timeout=PATIENCE)

    def answer(self, ids: Sequence[int], new_tokens: int, temperature: float, seed: int, way: Way) -> None:
        """Have a text written, piece by piece."""
        body = {
            "prompt": list(ids),
            "max_tokens": new_tokens,
            "temperature": temperature,
            "seed": seed,
            "method": METHOD,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        try:
            self._connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            reply = self._connection.getresponse()
            if reply.status != HTTPStatus.OK:
                raise InputError(f"the server says {reply.status}: {reply.read().decode()[:200]}")
            # Understood when all is there: this process has the server's cores.
            arrived = []
            while piece := reply.read1():
                arrived.append((time.perf_counter(), piece))
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"no server answers at {self._address}: {error}") from None
        ended = time.perf_counter()
        *_, last, _ = b"".join(piece for _, piece in arrived).decode().strip().split("\n\n")
        usage = json.loads(last.removeprefix("data: "))["usage"]
        way.add(arrived[0][0] - began, ended - began, usage["completion_tokens"])
        way.remembered += usage["prompt_tokens_details"]["cached_tokens"]


def alone(model: EaModel, ids: Sequence[int], new_tokens: int, temperature: float, seed: int, way: Way) -> None:
    """The same text by the model in this process."""
    generator = torch.Generator().manual_seed(seed)
    params = SamplingParams(
        temperature=temperature, max_new_tokens=new_tokens, max_length=len(ids) + new_tokens, generator=generator
    )
    began = time.perf_counter()
    times, count = [], 0
    for decoding in model.rounds(Drafting.parse(METHOD), torch.tensor([list(ids)], device=model.device), params):
        times.append(time.perf_counter())
        count = decoding.new_tokens
    way.add(times[0] - began, time.perf_counter() - began, count)


def long_messages(model: EaModel, number: int, tokens: int) -> list[Message]:
    """A conversation's first turn of about so many tokens, which begins as no other does."""
    questions = [question.turns[0] for question in load_questions(assets.mt_bench_questions())]
    text = f"Conversation {number}. Read these questions, and say which is the hardest.\n\n"
    while True:
        for question in questions[number % len(questions) :] + questions:
            messages = [Message(role="user", content=text)]
            if chat_ids(model.get_tokenizer(), messages).shape[1] >= tokens:
                return messages
            text += f"{question}\n\n"


def second_turns(model: EaModel, client: Client, args: argparse.Namespace) -> None:
    """Second turns that are remembered, and others that are not."""
    remembered, anew, lengths = Way(), Way(), list[int]()
    for number in range(args.conversations):
        ids = []
        for seen in (True, False):
            messages = long_messages(model, 2 * number + seen, args.conversation_tokens - args.new_tokens)
            first = chat_ids(model.get_tokenizer(), messages)
            found = model.eagenerate(first, max_new_tokens=args.new_tokens, max_length=first.shape[1] + args.new_tokens)
            if isinstance(found, tuple):
                raise TypeError("no log was asked for")
            answer = model.get_tokenizer().decode(found[0, first.shape[1] :], skip_special_tokens=True)
            if seen:
                client.answer(first[0].tolist(), args.new_tokens, 0.0, 0, Way())
            messages += [Message(role="assistant", content=answer), Message(role="user", content=FOLLOWING)]
            ids.append(chat_ids(model.get_tokenizer(), messages)[0].tolist())
        turns = [(remembered, ids[0]), (anew, ids[1])]
        for way, prompt in turns if number % 2 else turns[::-1]:
            time.sleep(PAUSE)
            client.answer(prompt, args.new_tokens, args.temperature, 0, way)
        lengths += map(len, ids)
    count = args.conversations
    print(
        f"{count} second turns of which {remembered.remembered / count:.0f} tokens are remembered, {count} of which "
        f"{anew.remembered / count:.0f} are, of prompts of {min(lengths)} to {max(lengths)}; to the first token "
        f"{1e3 * sum(remembered.first.seconds) / count:.1f} ms and {1e3 * sum(anew.first.seconds) / count:.1f} ms: "
        f"{ratio(anew.first, remembered.first)}"
    )


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add_pair_arguments(parse)
    parse.add_argument("--url", required=True, help="of a server of the same pair that runs")
    parse.add_argument("--temperature", type=float, default=1.0)
    parse.add_argument("--prompts", type=int, default=30, help="first turns of MT-Bench, evenly spread")
    parse.add_argument("--new-tokens", type=int, default=64)
    parse.add_argument("--conversations", type=int, default=10)
    parse.add_argument("--conversation-tokens", type=int, default=1500, help="of a first turn and its answer, about")
    args = parse.parse_args(argv)
    if min(args.prompts, args.new_tokens, args.conversations, args.conversation_tokens) < 1:
        raise InputError("--prompts, --new-tokens, --conversations and --conversation-tokens must be 1 or more")
    model, client = load(pair_of(args)), Client(args.url)
    # As the server does.
    model.expect(2**31)
    inputs = [prompt[0].tolist() for prompt in prompts(model, args.prompts, None)]
    served, by_itself = Way(), Way()
    for number, prompt in enumerate([inputs[0], *inputs]):
        # The first one warms both up.
        ways = (Way(), Way()) if number == 0 else (served, by_itself)
        for turn in (number % 2, 1 - number % 2):
            time.sleep(PAUSE)
            if turn:
                client.answer(prompt, args.new_tokens, args.temperature, number, ways[0])
            else:
                alone(model, prompt, args.new_tokens, args.temperature, number, ways[1])
    if served.whole.tokens != by_itself.whole.tokens:
        raise InputError("the server and the model alone wrote other texts: they must be of the same pair and form")
    what = f"{len(inputs)} texts of up to {args.new_tokens} tokens, {METHOD}, temperature {args.temperature:g}"
    print(f"{what}; alone over served:")
    print(f"  seconds to the first token: {ratio(by_itself.first, served.first)}")
    print(f"  new tokens a second: {ratio(by_itself.whole, served.whole)}")
    second_turns(model, client, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
