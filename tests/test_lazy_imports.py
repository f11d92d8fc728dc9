"""Packages that take seconds to import come only where they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mtmh.modules
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TORCHREC = {"torchrec", "fbgemm_gpu", "scipy", "transformers", "duckdb"}


def told_by(code: str) -> list[str]:
    """The words that a Python of its own prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("importing", "without"),
    [
        ("import mtmh.cli", {"torch", "numpy", "pyarrow", "pydantic", "yaml"}),
        ("import mtmh.config", {"torch", "numpy", "pyarrow", "faiss"}),
        ("import mtmh.live.live_index, mtmh.retrieval.query", {"torch", "pandas", *TORCHREC}),
        ("import mtmh.preranking.user_ranker, mtmh.preranking.fresh", {"torch", "pandas", *TORCHREC}),
        ("import mtmh.serving.server", {"torch", *TORCHREC}),
        ("from mtmh.modules import Combination, UserTower, task_probability", TORCHREC),
        ("import mtmh.prepare.prepare, mtmh.content.embed", {"torch", "torchrec", "transformers"}),
        ("import mtmh.evaluation.evaluate", {"torchrec", "transformers"}),
    ],
)
def test_a_part_imports_nothing_that_it_does_not_need(importing: str, without: set[str]) -> None:
    code = f"{importing}\nimport sys; print(sorted({without!r} & set(sys.modules)))"
    assert told_by(code) == ["[]"]


@pytest.mark.parametrize("ids", [[7, 5], ["b", "a"]])
def test_items_are_read_and_told_without_pandas(ids: list[int] | list[str], tmp_path: Path) -> None:
    items = {"item_id": ids, "text": ["first", None], "train_count": [3, 1], "first_seen": [1, None]}
    items |= {"topic_l1": ["t", "t"], "topic_l2": ["u", "u"]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    code = (
        "import sys, pathlib\n"
        "from mtmh.index.item_store import open_items; from mtmh.retrieval.catalogue import Catalogue\n"
        f"catalogue = Catalogue(open_items(pathlib.Path({str(tmp_path)!r}), 2))\n"
        f"print(catalogue.describe(catalogue.find({ids[:1]!r}, 'item'))[0].text, 'pandas' in sys.modules)"
    )
    assert told_by(code) == ["first", "False"]


def test_a_dataset_is_prepared_without_pandas(tmp_path: Path) -> None:
    events = {"user_id": [1, 1, 1, 2, 2, 2], "item_id": [7, 5, 9, 5, 7, 9], "timestamp": [1, 2, 3, 1, 2, 3]}
    pq.write_table(pa.table(events), tmp_path / "events.parquet")
    items = {"item_id": [5, 7, 9], "brand": ["a", None, "a"], "price": [1.5, None, 2.5]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    code = (
        "import sys, pathlib; from mtmh.config import Config; from mtmh.prepare.prepare import prepare\n"
        f"root = pathlib.Path({str(tmp_path)!r})\n"
        "data = {'source': 'tables', 'input': root, 'events': ['events.parquet'], 'items': ['items.parquet'],\n"
        "        'id_features': ['brand'], 'float_features': ['price'], 'split': {'kind': 'user'}}\n"
        "config = Config.model_validate({'name': 'test', 'paths': {'root': root}, 'data': data})\n"
        "print(prepare(config, root / 'dataset').summary['num_users'], 'pandas' in sys.modules)"
    )
    assert told_by(code) == ["2", "False"]


def test_retrieval_imports_without_torchrec() -> None:
    code = (
        "import importlib, pkgutil, sys, mtmh.retrieval as package\n"
        "names = [found.name for found in pkgutil.iter_modules(package.__path__)]\n"
        "for name in names: importlib.import_module(f'mtmh.retrieval.{name}')\n"
        "print(len(names) > 10, 'torchrec' in sys.modules)"
    )
    assert told_by(code) == ["True", "False"]


@pytest.mark.parametrize("name", mtmh.modules.__all__)
def test_the_model_has_every_name_that_it_says(name: str) -> None:
    assert getattr(mtmh.modules, name).__name__ == name
    assert name in dir(mtmh.modules)


def test_the_model_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match=r"mtmh\.modules.*'Tower'"):
        mtmh.modules.Tower  # noqa: B018
