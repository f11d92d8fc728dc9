"""Packages that take seconds to import come only where they are used."""

from __future__ import annotations

import subprocess
import sys

import mtmh.modules
import pytest

TORCHREC = {"torchrec", "fbgemm_gpu", "scipy", "transformers", "duckdb"}


@pytest.mark.parametrize(
    ("importing", "without"),
    [
        ("import mtmh.cli", {"torch", "numpy", "pyarrow", "pydantic", "yaml"}),
        ("import mtmh.config", {"torch", "numpy", "pyarrow", "faiss"}),
        ("import mtmh.live.live_index, mtmh.retrieval.query", {"torch", "pandas", *TORCHREC}),
        ("import mtmh.serving.server", TORCHREC),
        ("from mtmh.modules import Combination, UserTower, task_probability", TORCHREC),
    ],
)
def test_a_part_imports_nothing_that_it_does_not_need(importing: str, without: set[str]) -> None:
    code = f"{importing}\nimport sys; print(sorted({without!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_retrieval_imports_without_torchrec() -> None:
    code = (
        "import importlib, pkgutil, sys, mtmh.retrieval as package\n"
        "names = [found.name for found in pkgutil.iter_modules(package.__path__)]\n"
        "for name in names: importlib.import_module(f'mtmh.retrieval.{name}')\n"
        "print(len(names) > 10, 'torchrec' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("name", mtmh.modules.__all__)
def test_the_model_has_every_name_that_it_says(name: str) -> None:
    assert getattr(mtmh.modules, name).__name__ == name
    assert name in dir(mtmh.modules)


def test_the_model_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match=r"mtmh\.modules.*'Tower'"):
        mtmh.modules.Tower  # noqa: B018
