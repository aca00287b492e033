"""What all files of JSON lines have in common: a mark at their beginning, texts, and numbers that others can read."""

from __future__ import annotations

import json
from typing import Any

BOM = b"\xef\xbb\xbf"
"""The mark that some editors put before a text; as an encoding for reading it is ``utf-8-sig``."""
IDS = range(-(2**63), 2**64)
"""Whole numbers that every reader of JSON takes: those of 64 bits, with or without a sign."""


def parsed(line: str | bytes) -> Any:
    """What a line of JSON holds.

    Raises:
        ValueError: it is no JSON, or it is nested too deep to be read.
    """
    try:
        return json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None


def is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON's escapes can also spell one half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
