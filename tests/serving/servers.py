"""A server in a process of its own, on a port of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

PATIENCE = 300
"""Seconds, of which a busy machine takes many."""


@dataclass
class Running:
    """A server that runs."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    def health(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/health", timeout=PATIENCE).json()

    def post(self, body: Any, path: str = "chat/completions") -> httpx.Response:
        return httpx.post(f"{self.url}/v1/{path}", json=body, timeout=PATIENCE)

    def until(self, **wanted: Any) -> None:
        """Wait until its health is so."""
        while {name: self.health()[name] for name in wanted} != wanted:
            time.sleep(0.01)


@contextmanager
def server(
    arguments: list[str], folder: Path, *more: str, port: int | None = None, **environment: str
) -> Iterator[Running]:
    if port is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    log = folder / f"server-{port}.log"
    command = [sys.executable, "-m", "eagle.serving", *arguments, "--port", str(port), "--device", "cpu", *more]
    with log.open("w") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
        )
    running = Running(process, f"http://127.0.0.1:{port}", log)
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                running.health()
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield running
    finally:
        process.kill()
        process.wait()
        assert "Traceback" not in log.read_text(), log.read_text()
