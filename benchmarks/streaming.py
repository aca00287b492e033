"""What watching an answer costs: ``python -m benchmarks.streaming``.

The same answers three ways, in turn and in one thread, each time another way first: ``eagenerate`` alone; as a stream
of pieces and figures, which is what the terminal chat shows; and through what the page does, with the model in a thread
of its own and the HTML of the turn built anew ten times a second (without Gradio and a browser).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch

from benchmarks.decode import Method, ratio
from eagle import assets
from eagle.application.conversation import ChatModel, ChatSettings, add_chat_arguments, chat_model_of, settings_of
from eagle.application.service import PERIOD, Service, Talk
from eagle.chat_template import Message
from eagle.clock import Clock
from eagle.data.questions import load_questions
from eagle.errors import InputError
from eagle.program import run_program
from eagle.threads import apart

SEED = 0


class Ways:
    """Answers a message in several ways.

    Args:
        chat_model: the pair, with a seed.
        settings: how to answer.
    """

    def __init__(self, chat_model: ChatModel, settings: ChatSettings) -> None:
        self.chat_model, self.settings = chat_model, settings
        self.service = Service(chat_model, settings)

    def alone(self, message: str) -> None:
        """``eagenerate``, nothing else."""
        self.service.thread.begin(lambda: self._alone(message)).result()

    def _alone(self, message: str) -> None:
        settings, chat_model = self.settings, self.chat_model
        prompt = chat_model.prompt([Message(role="user", content=message)])
        chat_model.model.eagenerate(
            prompt,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_new_tokens=settings.max_new_tokens,
            max_length=prompt.shape[1] + settings.max_new_tokens,
            generator=torch.Generator().manual_seed(SEED),
            verifier=settings.method.verifier,
            tree=chat_model.shape(settings),
        )

    def streamed(self, message: str) -> None:
        """As pieces."""
        self.service.thread.begin(lambda: self._streamed(message)).result()

    def _streamed(self, message: str) -> None:
        for _ in self.chat_model.answer([Message(role="user", content=message)], self.settings):
            pass

    def shown(self, message: str) -> None:
        """As the page's HTML."""
        self.service.begin("benchmark")
        for _ in self.service.answer("benchmark", message, Talk(), {}, side_by_side=False):
            pass


def benchmark(argv: Sequence[str] | None) -> None:
    """The whole benchmark."""
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add_chat_arguments(parse)
    parse.add_argument("--prompts", type=int, default=20)
    parse.set_defaults(max_new_token=96, seed=SEED)
    args = parse.parse_args(argv)
    if args.prompts < 1:
        raise InputError(f"--prompts must be 1 or more, not {args.prompts}")
    settings = settings_of(args)
    ways = Ways(apart(lambda: chat_model_of(args)), settings)
    messages = [question.turns[0] for question in load_questions(assets.mt_bench_questions())]
    messages = messages[:: max(1, len(messages) // args.prompts)][: args.prompts]
    turns: list[tuple[Method, Callable[[str], None]]] = [
        (Method(), ways.alone),
        (Method(), ways.streamed),
        (Method(), ways.shown),
    ]
    for _, way in turns:
        way(messages[0])
    for number, message in enumerate(messages):
        first = number % len(turns)
        for measured, way in turns[first:] + turns[:first]:
            clock = Clock(ways.chat_model.model.device)
            way(message)
            measured.seconds.append(clock.lap())
            # The same seed, so the same answer: the ratio of speeds is that of times.
            measured.tokens.append(1)
    ways.service.close()
    alone, streamed, shown = (measured for measured, _ in turns)
    print(
        f"{settings.method_name}, {len(messages)} answers of up to {settings.max_new_tokens} tokens; time over alone:"
    )
    print(f"  streamed: {ratio(streamed, alone)}")
    print(f"  shown as HTML every {PERIOD} s: {ratio(shown, alone)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(benchmark, argv)


if __name__ == "__main__":
    sys.exit(main())
