from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import HealthCheck, settings

from eagle.model.ea_model import EaModel
from tests.tiny import load_pair, make_draft_model, make_pair, write_letters

MEMORY = 2 * 2**30
"""Bytes that one process of tests may come to need, with those it starts."""

# As many processes as cores are one thread each, and so are the programs they start; results depend on no machine.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means: as many processes as there are cores to run on, and memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().total // MEMORY))


@pytest.fixture(scope="session")
def llama_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama(llama_pair: tuple[Path, Path]) -> EaModel:
    return load_pair(*llama_pair)


@pytest.fixture(scope="session")
def drafters(tmp_path_factory: pytest.TempPathFactory) -> EaModel:
    """A model with every drafter there is."""
    folder = tmp_path_factory.mktemp("drafters")
    base, head = make_pair(folder)
    write_letters(base)
    draft = make_draft_model(folder / "draft", initializer_range=0.3)
    return load_pair(base, head, draft_model_path=str(draft), paths=2)
