"""Setting up: which torch a machine gets, from package indexes of its own."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.wheels import write_index, write_wheel
from tools import install_torch

REPOSITORY = Path(__file__).parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyPI has one build")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@dataclass
class Machine:
    """One that has nothing but what a test puts there.

    Attributes:
        folder: holds everything.
        root: of its file system, as far as devices are looked for.
        programs: on its PATH before all others.
        cpu_index: of CPU builds, served on this machine.
        pypi: what pip is configured with in place of PyPI; its torch is the CUDA build.
    """

    folder: Path
    root: Path = field(init=False)
    programs: Path = field(init=False)
    cpu_index: str = field(init=False)
    pypi: str = field(init=False)

    def __post_init__(self) -> None:
        self.root, self.programs = self.folder / "root", self.folder / "bin"
        self.programs.mkdir()
        wheels = self.folder / "wheels"
        build = {"torch/build.txt": b"CPU"}
        write_index(self.folder / "cpu", write_wheel(wheels, "torch", "2.13.0+cpu", build, "needed-by-torch"))
        build = {"torch/build.txt": b"CUDA"}
        self.pypi = write_index(
            self.folder / "pypi",
            write_wheel(wheels, "torch", "2.13.0", build, "needed-by-torch"),
            write_wheel(wheels, "needed-by-torch", "1.0", {"needed.txt": b"PyPI's"}),
        )

    def install(self, *more: str) -> int:
        """Run the program; what it installs goes to a folder."""
        return install_torch.main(["torch==2.13.0", "--cpu-index-url", self.cpu_index, *more], self.root)

    def installed(self, file: str = "torch/build.txt") -> str:
        return (self.folder / "installed" / file).read_text()

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(tmp_path)
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    for variable, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": made.pypi,
        "PIP_TARGET": str(tmp_path / "installed"),
        "PIP_CACHE_DIR": str(tmp_path / "cache"),
        "PIP_DEFAULT_TIMEOUT": "300",
        "PATH": f"{made.programs}{os.pathsep}{os.environ['PATH']}",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(variable, value)
    # A busy machine takes long to answer itself.
    monkeypatch.setattr(install_torch, "PATIENCE", 300.0)
    made.program("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "cpu")) as server:
        made.cpu_index = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield made
        server.shutdown()


@LINUX
def test_without_a_gpu_the_cpu_build_is_taken_and_said(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.install() == 0
    assert (machine.installed(), machine.installed("needed.txt")) == ("CPU", "PyPI's")
    assert capsys.readouterr().out == f"torch==2.13.0: the CPU build of {machine.cpu_index}: there is no NVIDIA GPU\n"


@LINUX
@pytest.mark.parametrize("sign", ["/dev/nvidia0", "/proc/driver/nvidia", "nvidia-smi"])
def test_with_a_gpu_it_is_what_pip_finds(machine: Machine, sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    if sign == "nvidia-smi":
        machine.program(sign, "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'")
        shown = sign
    else:
        there = machine.root / sign.removeprefix("/")
        there.mkdir(parents=True)
        shown = str(there)
    assert machine.install() == 0
    assert machine.installed() == "CUDA"
    assert f"as pip finds it: there is an NVIDIA GPU ({shown})" in capsys.readouterr().out


@LINUX
def test_without_the_index_of_cpu_builds_it_is_what_pip_finds(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        machine.cpu_index = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert machine.install() == 0
    assert machine.installed() == "CUDA"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("torch==2.13.0: as pip finds it: there is no NVIDIA GPU, but http://127.0.0.1:")
    assert "cannot be reached ([Errno" in line


@LINUX
def test_an_index_that_never_answers_is_not_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_torch, "PATIENCE", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        options, shown = install_torch.choose(
            None, f"http://127.0.0.1:{silent.getsockname()[1]}", "linux", machine.root
        )
    assert options == []
    assert "cannot be reached (" in shown


@LINUX
@pytest.mark.parametrize("where", ["variable", "file"])
def test_indexes_that_pip_is_configured_with_stay(
    machine: Machine, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch needs is in an index of the person's own alone."""
    shutil.rmtree(tmp_path / "pypi" / "needed-by-torch")
    own = write_index(tmp_path / "own", write_wheel(tmp_path / "wheels", "needed-by-torch", "1.0", {"a.txt": b"own"}))
    if where == "variable":
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", own)
    else:
        monkeypatch.delenv("PIP_INDEX_URL")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = {machine.pypi}\nextra-index-url = {own}\n")
    assert machine.install() == 0
    assert (machine.installed(), machine.installed("a.txt")) == ("CPU", "own")


@LINUX
def test_an_index_that_is_named_wins(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = {"torch/build.txt": b"the person's"}
    needed = machine.folder / "pypi" / "needed-by-torch" / "needed_by_torch-1.0-py3-none-any.whl"
    named = write_index(tmp_path / "named", write_wheel(tmp_path / "wheels", "torch", "2.13.0", build), needed)
    assert machine.install("--index-url", named) == 0
    assert machine.installed() == "the person's"
    assert f"from {named}, as told" in capsys.readouterr().out


def test_what_cannot_be_installed_is_pips_error(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    assert install_torch.main(["torch==99", "--cpu-index-url", machine.cpu_index], machine.root) == 1
    assert "No matching distribution found for torch==99" in capfd.readouterr().err


def test_other_systems_take_pypis_build(machine: Machine) -> None:
    assert install_torch.choose(None, machine.cpu_index, "darwin", machine.root)[0] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], 'install_torch.py "torch==2.13.0"'),
        (["TORCH=torch==2.14.0"], 'install_torch.py "torch==2.14.0"'),
        (["TORCH_INDEX=https://a.example/simple"], '"torch==2.13.0" --index-url "https://a.example/simple"'),
    ],
)
def test_make_asks_for_no_decision_and_takes_one(given: list[str], told: str) -> None:
    told_to = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "TORCH", "TORCH_INDEX")}
    steps = subprocess.run(
        ["make", "--dry-run", "--always-make", "setup", *given],  # noqa: S607  # the make on the PATH
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=told_to,
        check=True,
    ).stdout.splitlines()
    (step,) = [step for step in steps if "install_torch" in step]
    assert step.endswith(told)
