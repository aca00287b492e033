"""Install torch with pip: its small CPU build on a Linux machine without an NVIDIA GPU, else what pip finds by itself.

On Linux, the torch of the Python package index is the CUDA build, of gigabytes. Needs the standard library only, since
it runs before anything else is installed. Whatever pip is configured to look in, it looks in still.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PATIENCE = 5.0
"""Seconds for the index of CPU builds to answer."""


def nvidia_gpu(root: Path = Path("/")) -> str | None:
    """What shows that this machine has an NVIDIA GPU; None if nothing does.

    Args:
        root: of the file system.
    """
    for file in (root / "dev" / "nvidia0", root / "proc" / "driver" / "nvidia"):
        if file.exists():
            return str(file)
    program = shutil.which("nvidia-smi")
    if program is not None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            listed = subprocess.run([program, "-L"], capture_output=True, timeout=60, check=False)
            if listed.returncode == 0 and listed.stdout.strip():
                return "nvidia-smi"
    return None


def trouble_with(index: str) -> str | None:
    """Why a package index cannot be used; None if it answers."""
    found = [f"no answer within {PATIENCE:g} s"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=PATIENCE):  # noqa: S310  # an index that we name
                found[0] = ""
        except (OSError, ValueError) as error:
            found[0] = str(error.reason if isinstance(error, urllib.error.URLError) else error)

    # Looking up a name heeds no time-out.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return found[0] or None


def choose(index: str | None, cpu_index: str, system: str, root: Path) -> tuple[list[str], str]:
    """What pip is told, and what a person is told about it.

    Args:
        index: that the person named, if any.
        cpu_index: of CPU builds.
        system: as ``sys.platform`` has it.
        root: of the file system.
    """
    if index:
        return ["--index-url", index], f"from {index}, as told"
    if system != "linux":
        return [], "as pip finds it, which has no CUDA on this system"
    gpu = nvidia_gpu(root)
    if gpu is not None:
        return [], f"as pip finds it: there is an NVIDIA GPU ({gpu})"
    trouble = trouble_with(cpu_index)
    if trouble is not None:
        return [], f"as pip finds it: there is no NVIDIA GPU, but {cpu_index} cannot be reached ({trouble})"
    # Beside the indexes that pip knows, not in place of them: of equal versions pip takes the one marked "+cpu".
    return ["--extra-index-url", cpu_index], f"the CPU build of {cpu_index}: there is no NVIDIA GPU"


def main(argv: Sequence[str] | None = None, root: Path = Path("/")) -> int:
    """Install torch into the environment of the Python that runs this; returns pip's exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("requirement", help="as pip takes it, for instance torch==2.13.0")
    parser.add_argument("--index-url", help="take torch from there and decide nothing")
    parser.add_argument("--cpu-index-url", default=CPU_INDEX, help="where CPU builds are (default: %(default)s)")
    given = parser.parse_args(argv)
    options, shown = choose(given.index_url, given.cpu_index_url.rstrip("/"), sys.platform, root)
    print(f"{given.requirement}: {shown}", flush=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *options]
    return subprocess.run([*pip, given.requirement], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
