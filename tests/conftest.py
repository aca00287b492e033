from __future__ import annotations

from pathlib import Path

import pytest

from eagle.model.ea_model import EaModel
from tests.tiny import load_pair, make_pair


@pytest.fixture(scope="session")
def llama_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def llama(llama_pair: tuple[Path, Path]) -> EaModel:
    return load_pair(*llama_pair)
