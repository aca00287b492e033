"""A page to talk to a pair: ``python -m eagle.application.webui``."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence

from eagle.application.conversation import add_chat_arguments, chat_model_of, settings_of
from eagle.application.service import Service
from eagle.errors import InputError
from eagle.program import run_program
from eagle.threads import apart


def serve(argv: Sequence[str] | None) -> None:
    """Load the pair and serve the page until Ctrl-C.

    Raises:
        InputError: anything the user can put right.
    """
    parse = argparse.ArgumentParser(
        description="Serve a page to chat with a model, to this machine only.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add_chat_arguments(parse)
    parse.add_argument("--port", type=int, help="None: the first free one from 7860")
    args = parse.parse_args(argv)
    if args.port is not None and not 1 <= args.port < 2**16:
        raise InputError(f"--port must be 1 to 65535, not {args.port}")
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs Gradio: pip install 'eagle-hsd[app]'")
    settings = settings_of(args)
    # Read when Gradio is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from eagle.application.page import build, launch

    service = Service(apart(lambda: chat_model_of(args)), settings)
    page = build(service)
    print(f"{service.chat_model.name}: {launch(page, args.port)} (Ctrl-C ends)", flush=True)
    try:
        page.block_thread()
    finally:
        service.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(serve, argv)


if __name__ == "__main__":
    sys.exit(main())
