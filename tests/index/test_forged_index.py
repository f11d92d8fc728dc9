"""Forged files of an index: an error that names the file, or an answer; never a process that dies.

Each forgery is opened and searched in a process of its own under a limit of memory and time. The forgeries are the same
in each run: bits, words that are counts and places elsewhere, cuts.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stored_index import HEADS, NUM_ITEMS, index_config, write_world

from mtmh.index.build import build_index

WORDS = (2**62, -1, 2**31, 2**40, 0, 1, NUM_ITEMS + 1, 2**63 - 1)
PER_FILE = 60
# Of each case one line: how it ended.
OPENER = """
import json, os, resource, signal, sys
from pathlib import Path
import numpy as np
from mtmh.artifacts import open_artifact
from mtmh.index.artifact import IndexSummary
from mtmh.index.item_store import open_items
from mtmh.index.store import open_head
from mtmh.retrieval.catalogue import Catalogue

folder, head = Path(sys.argv[1]), sys.argv[2]
summary = IndexSummary.model_validate(open_artifact(folder, "index").summary)
queries = np.random.default_rng(0).normal(size=(4, summary.dim)).astype(np.float32)

def search():
    index, vectors = open_head(folder, head, summary)
    for probes in (3, summary.num_clusters):
        items = index.search(queries, 50, probes)[1]
        assert items.min() >= -1 and items.max() < summary.num_items, "an item that is none"
    index.search(queries, 50, 5, np.arange(summary.num_items) % 2 == 0)
    near = index.nearest_kept(np.arange(summary.num_items), vectors[:], 8)
    if near is not None:
        index.search(vectors[:], 5, 8, near=near)
    vectors[np.array([0, 5, summary.num_items - 1])]

def describe():
    catalogue = Catalogue(open_items(folder, summary.num_items))
    rows = np.arange(summary.num_items)
    catalogue.find(catalogue.ids(rows), "item")
    catalogue.describe(rows)

search()
describe()
for line in sys.stdin:
    name, forged = line.split()
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(Path(forged).read_bytes())
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(20)
        told = "answers"
        try:
            # Neither reads a file of the other.
            search() if name.startswith(head) else describe()
        except ValueError as error:
            told = "refused" if str(folder / name) in str(error) or head in str(error) else f"unclear: {error}"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        print(forged, told.replace(chr(10), " "), flush=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        print(forged, f"signal {os.WTERMSIG(status)}", flush=True)
    (folder / name).write_bytes(whole)
"""


def forgeries(whole: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """Forged contents of a file, most of them near its beginning and end, where its structure is."""
    source, size = random.Random(seed), len(whole)
    for number in range(PER_FILE):
        near = min(size, source.choice((40, 200, 1000, size)))
        place = source.choice((source.randrange(near), size - 1 - source.randrange(near)))
        kind = number % 4
        if kind == 0:
            yield (
                f"bit at {place}",
                whole[:place] + bytes([whole[place] ^ 1 << source.randrange(8)]) + whole[place + 1 :],
            )
        elif kind == 3:
            yield f"cut at {place}", whole[:place]
        elif place + 8 <= size:
            place -= place % 4
            word = source.choice(WORDS)
            yield f"{word} at {place}", whole[:place] + struct.pack("<q", word) + whole[place + 8 :]
    yield "more behind", whole + bytes(64)
    # Lists that begin elsewhere, as one who knows the format would have it.
    for back in range(16, min(size - 8, 400), 8):
        yield f"entry {back}", whole[: size - back] + struct.pack("<q", 2**45) + whole[size - back + 8 :]


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["flat", "fp16", "sq8", "pq", "fastscan"])
def test_a_forged_file_ends_in_an_error_or_an_answer(storage: str, tmp_path: Path) -> None:
    write_world(tmp_path)
    folder = build_index(index_config(tmp_path, storage), tmp_path / "index").path
    aside = tmp_path / "forged"
    aside.mkdir()
    cases: dict[str, str] = {}
    lines: list[str] = []
    head = HEADS[0]
    names = [f"{head}.faiss", f"{head}.lists", f"{head}.places.npy", f"{head}.near.npy", f"{head}.exact.faiss"]
    names += ["items.arrow", "item_features.arrow", "key_items.npy"] if storage == "flat" else []
    for seed, name in enumerate(name for name in names if (folder / name).is_file()):
        for number, (told, content) in enumerate(forgeries((folder / name).read_bytes(), seed)):
            path = aside / f"{name}-{number}"
            path.write_bytes(content)
            cases[str(path)] = f"{name}: {told}"
            lines.append(f"{name} {path}\n")
    ended = run_opener(folder, head, lines)
    assert ended.keys() == cases.keys()
    wrong = [f"{cases[path]}: {how}" for path, how in ended.items() if how not in ("answers", "refused")]
    assert wrong == [], "\n".join(wrong)
    refused = sum(how == "refused" for how in ended.values())
    assert refused > 0.4 * len(ended), f"{refused} of {len(ended)}"


def run_opener(folder: Path, head: str, lines: list[str]) -> dict[str, str]:
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        [sys.executable, "-c", OPENER, folder, head],
        input="".join(lines),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        # One thread: a child forked from a process whose OpenMP threads are there waits for them for ever.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parts = [line.partition(" ") for line in done.stdout.splitlines()]
    return {path: how for path, _, how in parts}
