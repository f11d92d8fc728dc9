"""The examples in the docstrings of the model's package run as written."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import mtmh.modules
import pytest

NAMES = [module.name for module in pkgutil.walk_packages(mtmh.modules.__path__, "mtmh.modules.")]


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str) -> None:
    if name == "mtmh.modules.losses.triton":
        pytest.importorskip("triton")
    results = doctest.testmod(importlib.import_module(name), verbose=False)
    assert results.failed == 0


def test_public_names_are_documented() -> None:
    for name in mtmh.modules.__all__:
        assert getattr(mtmh.modules, name).__doc__
