"""The examples run as they stand, on the embedded pair."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.servers import server

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = [pytest.mark.network, pytest.mark.slow]


def said(example: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_of_transformers_writes_with_a_head() -> None:
    assert said("with_transformers.py")


def test_openais_client_talks_to_the_server(tmp_path: Path) -> None:
    with server([], tmp_path, "--compile", "off") as running:
        *text, last = said("chat_client.py", f"{running.url}/v1").splitlines()
    assert "".join(text)
    assert "of them drafted" in last


def test_every_example_is_run() -> None:
    ran = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{example.name}"' in ran for example in EXAMPLES.glob("*.py"))
