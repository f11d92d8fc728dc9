from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_bert import write_bert
from tiny_catalogue import make_config, write_catalogue

from mtmh.config import Config
from mtmh.content.train import train_content


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `write_catalogue` makes it; not to be changed."""
    root = tmp_path_factory.mktemp("catalogue")
    write_catalogue(root)
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, catalogue: Path) -> Config:
    """A recipe whose encoder is trained; its root is not to be changed but for new artifacts."""
    config = make_config(tmp_path_factory.mktemp("trained"), catalogue, encoder={"training": {"epochs": 12}})
    train_content(config, config.encoder_dir)
    return config


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny text encoder at random weights."""
    return write_bert(tmp_path / "bert")
