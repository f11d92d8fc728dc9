"""The folder of a chain, from which no process outlives a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_chain import RECIPE, of_this_chain


@pytest.fixture(scope="module")
def recipe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, one for the tests of a file, which go on from each other."""
    path: Path = tmp_path_factory.mktemp("chain")
    (path / "tiny.yaml").write_text(RECIPE)
    return path


@pytest.fixture
def folder(recipe_folder: Path) -> Iterator[Path]:
    """The folder; what a test has started there is killed after it."""
    yield recipe_folder
    for process in of_this_chain(recipe_folder):
        process.kill()
