"""Bytes an item that a server holds for ids and what is shown, mapped and read into memory, and what answers cost.

    python -m benchmarks.serving.catalogue --items 1000000 --ids string --out catalogue.json

Writes simulated items in both forms: as an index has them, and as one that was built before items were mapped has them.
Each is opened in a process of its own, whose anonymous memory counts: what is mapped of a file the system may take
back. Then both take turns in one process, which compares their answers.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.compare import made_by
from mtmh.data import schema
from mtmh.index.artifact import ITEM_FEATURES, ITEMS
from mtmh.index.item_store import BATCH_ROWS, StoredItems, open_items, write_batches, write_order
from mtmh.retrieval.catalogue import Catalogue

FORMS = ("read", "mapped")


def main() -> None:
    """Writes the items, measures both forms and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--ids", choices=("int64", "string"), default="int64")
    parser.add_argument("--k", type=int, default=100, help="items of an answer")
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(held(arguments.measure, arguments.items)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folders = {form: Path(scratch, form) for form in FORMS}
        write_items(folders, arguments.items, arguments.ids)
        results: dict[str, dict[str, Any]] = {}
        for form, folder in folders.items():
            command = [sys.executable, "-m", "benchmarks.serving.catalogue", "--measure", str(folder)]
            command += ["--items", str(arguments.items)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results[form] = json.loads(found)
            results[form]["bytes an item on the disk"] = (
                sum(file.stat().st_size for file in folder.iterdir()) / arguments.items
            )
        opened = {form: Catalogue(open_items(folder, arguments.items)) for form, folder in folders.items()}
        for form, medians in in_turns(opened, arguments.k, arguments.turns).items():
            results[form] |= medians
    print(f"| {arguments.items:,} items, {arguments.ids} ids | {' | '.join(FORMS)} |\n|---|---:|---:|")
    for name in results["read"]:
        print(f"| {name} | {' | '.join(f'{results[form][name]:,.1f}' for form in FORMS)} |")
    if arguments.out:
        report = {"command": made_by(), "items": arguments.items, "ids": arguments.ids, "k": arguments.k}
        arguments.out.write_text(json.dumps(report | {"results": results}, indent=2) + "\n")


def write_items(folders: dict[str, Path], count: int, ids: str) -> None:
    """Writes the same simulated items in both forms."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(10**12 + 7 * np.arange(count))
    texts = [f"a title of some forty letters, item {item}" for item in range(count)]
    items = pa.table(
        {
            "item_id": numbers if ids == "int64" else [f"sku-{number}-xxl" for number in numbers],
            "text": texts,
            "image": [f"pictures/{item}.jpg" for item in range(count)],
            "topic_l1": [f"topic {item % 20}" for item in range(count)],
            "topic_l2": [f"topic {item % 20} part {item % 200}" for item in range(count)],
            "train_count": rng.integers(0, 100, count),
            "first_seen": pa.array(rng.integers(0, 10**9, count), mask=rng.random(count) < 0.1),
        }
    )
    features = pa.table({"brand": [[f"brand {item % 5000}"] for item in range(count)], "price": rng.random(count)})
    for folder in folders.values():
        folder.mkdir()
    pq.write_table(items, folders["read"] / schema.ITEMS)
    pq.write_table(features, folders["read"] / schema.ITEM_FEATURES)
    for path, table in ((ITEMS, items), (ITEM_FEATURES, features)):
        write_batches(folders["mapped"] / path, table.to_batches(BATCH_ROWS))
    stored = StoredItems.of(items)
    write_order(folders["mapped"], stored.order, stored.ids)


def held(folder: Path, count: int) -> dict[str, float]:
    """Anonymous bytes an item after opening and a first answer, and seconds of opening."""
    before, start = anonymous(), time.perf_counter()
    catalogue = Catalogue(open_items(folder, count))
    seconds = time.perf_counter() - start
    answer(catalogue, np.linspace(0, count - 1, 100).astype(np.int64))
    pa.default_memory_pool().release_unused()
    return {"bytes an item": (anonymous() - before) / count, "seconds to open": seconds}


def anonymous() -> int:
    """Bytes of memory of this process that are of no file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def answer(catalogue: Catalogue, rows: Any) -> tuple[Any, ...]:
    """All that a request with descriptions asks of a catalogue."""
    ids = catalogue.ids(rows)
    return ids, catalogue.find(ids, "item").tolist(), catalogue.describe(rows)


def in_turns(opened: dict[str, Catalogue], k: int, turns: int) -> dict[str, dict[str, float]]:
    """Medians in microseconds; answers are compared."""
    rng = np.random.default_rng(1)
    spent: dict[str, dict[str, list[float]]] = {form: {} for form in opened}
    for _ in range(turns):
        rows = rng.integers(0, len(opened["read"]), k)
        answers = []
        for form, catalogue in opened.items():
            calls: dict[str, Callable[[], Any]] = {
                "ids": partial(catalogue.ids, rows),
                "find": partial(catalogue.find, catalogue.ids(rows), "item"),
                "describe": partial(catalogue.describe, rows),
            }
            for name, run in calls.items():
                start = time.perf_counter()
                found = run()
                spent[form].setdefault(f"us of {name}, {k} items", []).append(1e6 * (time.perf_counter() - start))
                answers.append(found.tolist() if name == "find" else found)
        half = len(answers) // 2
        assert answers[:half] == answers[half:], "the forms answer differently"
    return {form: {name: statistics.median(of_name) for name, of_name in own.items()} for form, own in spent.items()}


if __name__ == "__main__":
    main()
