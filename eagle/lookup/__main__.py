"""Databases of look-up: ``python -m eagle.lookup build FILE SOURCE...``.

Source: Hierarchy Drafting (arXiv 2502.05609). S holds answers of the model itself, L any text; they are the same kind
of file, and what is drafted with them is told which is which (``--model-db``, ``--corpus-db``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eagle import assets
from eagle.errors import InputError
from eagle.lookup.build import build
from eagle.program import run_program
from eagle.target.base import load_tokenizer

INTERRUPTED = "interrupted; what is tokenized is saved, and the same command goes on"


def lookup(argv: Sequence[str] | None) -> None:
    """The whole program.

    Raises:
        InputError: anything the user can put right.
    """
    parse = argparse.ArgumentParser(
        prog="python -m eagle.lookup", description="Databases for drafting by look-up.", allow_abbrev=False
    )
    commands = parse.add_subparsers(dest="command", required=True)
    making = commands.add_parser(
        "build",
        help="make a database, or go on with one",
        description="Make a database of texts, or go on with one whose making was interrupted.",
        allow_abbrev=False,
    )
    making.add_argument("file", type=Path, metavar="FILE", help="to be written")
    making.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a folder of answers of eagle.train generate; JSON lines or an array, hf:owner/name[/config][:split]"
        "[:column], or sharegpt, of whose records every text of more than one word is taken; any text file",
    )
    making.add_argument("--base-model-path", help="whose tokenizer it is for; default: the embedded model")
    making.add_argument("--tokens", type=int, help="take no text behind so many tokens")
    args = parse.parse_args(argv)
    if args.tokens is not None and args.tokens < 1:
        raise InputError(f"--tokens must be 1 or more, not {args.tokens}")
    tokenizer = load_tokenizer(assets.resolve_base(args.base_model_path))
    built = build(args.file, args.sources, tokenizer, args.tokens)
    print(f"{built.file}: {built.texts:,} texts, {built.tokens:,} tokens, {built.file.stat().st_size / 1e6:,.1f} MB")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(lookup, argv, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
