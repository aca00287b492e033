"""An OpenAI-compatible server for one model: ``python -m eagle.serving``.

``/v1/chat/completions``, ``/v1/completions``, ``/v1/models``, ``/health`` and ``/metrics``. It is reached from this
machine alone; with ``--host`` of another address clients must show the key in the variable EAGLE_API_KEY. One text is
written at a time, others wait in a queue. SIGTERM finishes what is being written and refuses the rest.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import sys
from collections.abc import Sequence
from types import FrameType

import uvicorn

from eagle import assets
from eagle.chat_template import add_template_argument, require_chat_template, template_arguments
from eagle.decoding.method import Method
from eagle.decoding.prompt_cache import DEFAULT_BYTES, PromptCache
from eagle.errors import InputError
from eagle.identity import readable_name
from eagle.model.ea_model import EaModel
from eagle.model.loading import ModelChoice, add_pair_arguments, load, pair_of
from eagle.program import run_program
from eagle.serving.app import Application, Limits, Served
from eagle.serving.engine import Engine
from eagle.serving.requests import BASELINE
from eagle.threads import apart

API_KEY = "EAGLE_API_KEY"
SWITCH_SECONDS = 0.0005
# For which a connection is kept for the next turn of a conversation.
KEPT_SECONDS = 75
LEAST = {"queue": 0, "prompt_cache_gib": 0} | dict.fromkeys(
    ("max_body_bytes", "max_prompt_tokens", "max_new_token", "max_choices"), 1
)


def parser() -> argparse.ArgumentParser:
    """The program's arguments."""
    limits = Limits()
    parse = argparse.ArgumentParser(
        prog="python -m eagle.serving", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add_pair_arguments(parse.add_argument_group("model"))
    where = parse.add_argument_group("server")
    where.add_argument("--host", default="127.0.0.1", help=f"another than this machine's own needs {API_KEY}")
    where.add_argument("--port", type=int, default=8000)
    where.add_argument("--name", help="of the model; default: the base model's")
    where.add_argument("--queue", type=int, default=8, help="requests that may wait; others are sent away (429)")
    where.add_argument(
        "--method", default="hsd", help=f"where a request names none: eagle3, hsd, {BASELINE}, TREE:RULE"
    )
    where.add_argument("--max-body-bytes", type=int, default=limits.body_bytes, help="of a request")
    where.add_argument("--max-prompt-tokens", type=int, help="of a prompt; default: what the model has room for")
    where.add_argument("--max-new-token", type=int, default=limits.new_tokens, help="of a text")
    where.add_argument("--max-choices", type=int, default=limits.choices, help="texts of a request")
    where.add_argument(
        "--prompt-cache-gib",
        type=float,
        default=DEFAULT_BYTES / 2**30,
        help="of earlier texts, for longer ones",
    )
    add_template_argument(where)
    return parse


class Server(uvicorn.Server):
    """Refuses what waits as soon as it is told to end."""

    engine: Engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See ``uvicorn.Server.handle_exit``."""
        self.engine.close()
        super().handle_exit(sig, frame)


def local(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def loaded(choice: ModelChoice) -> EaModel:
    """A pair that is going to write many texts.

    Raises:
        InputError: see ``load``.
    """
    model = load(choice)
    model.expect(2**31)
    return model


def serve(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything that can be put right.
    """
    args = parser().parse_args(argv)
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be {least} or more, not {value}")
    if not 0 <= args.port < 2**16:
        raise InputError(f"--port must be 0 to 65535, not {args.port}")
    key = os.environ.get(API_KEY) or None
    if key is None and not local(args.host):
        raise InputError(f"--host {args.host} is reached from elsewhere: set {API_KEY} to a key that clients must show")
    method = None if args.method == BASELINE else Method.parse(args.method)
    template = template_arguments(args.chat_template_kwargs)
    model = apart(lambda: loaded(pair_of(args)))
    require_chat_template(model.get_tokenizer(), model.base_model_path, template)
    if method is not None:
        model.shape_for(method, 1.0)
    model.prompts = PromptCache(round(args.prompt_cache_gib * 2**30))
    # By default the thread that answers clients and the model's take turns every 5 ms, a quarter of a round.
    sys.setswitchinterval(SWITCH_SECONDS)
    engine = Engine(model, args.queue)
    limits = Limits(args.max_body_bytes, args.max_prompt_tokens, args.max_new_token, args.max_choices)
    name = args.name or readable_name(args.base_model_path or assets.DEFAULT_PAIR)
    served = Served(engine, name, method, limits, key, template)
    config = uvicorn.Config(
        Application(served),
        host=args.host,
        port=args.port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEPT_SECONDS,
        timeout_graceful_shutdown=600,
    )
    server = Server(config)
    server.engine = engine
    assets.say(f"serving {name} on http://{args.host}:{args.port}/v1")
    try:
        server.run()
    finally:
        engine.close()
    if not server.started:
        raise InputError(f"nothing can be served on {args.host}:{args.port}: the address cannot be used")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(serve, argv)


if __name__ == "__main__":
    sys.exit(main())
