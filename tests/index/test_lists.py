"""Inverted lists that are filed in shards and merged in runs, beside those that faiss fills by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from mtmh.data.row_file import RowFile
from mtmh.index import lists

NUM_ITEMS, DIM, NUM_LISTS = 1000, 8, 13


@pytest.mark.parametrize(
    ("shard_items", "run_bytes"), [(10, 1 << 20), (77, 1), (77, 700), (1000, 700), (4000, 1 << 20)]
)
def test_lists_are_those_of_faiss_whatever_the_shards_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_items: int, run_bytes: int
) -> None:
    monkeypatch.setattr(lists, "_LEAST_RUN_BYTES", run_bytes)
    vectors = np.random.default_rng(0).standard_normal((NUM_ITEMS, DIM)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, NUM_LISTS, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    expected: Any = faiss.clone_index(index)
    expected.add(vectors)

    shards = lists.ListShards(tmp_path, "head", NUM_ITEMS, shard_items)
    filer = lists.ShardFiler(index)
    for shard in range(shards.count):
        filer.file(RowFile(tmp_path / "vectors.npy"), shards, shard)
    offsets = shards.offsets()
    sizes = lists.list_sizes(offsets)
    assert sizes.tolist() == [expected.invlists.list_size(number) for number in range(NUM_LISTS)]
    merged, places = tmp_path / "merged.bin", lists.list_places(sizes, index.code_size)
    lists.create_lists(merged, sizes, index.code_size)
    runs = list(lists.merge_runs(sizes, index.code_size))
    assert [number for first, end in runs for number in range(first, end)] == list(range(NUM_LISTS))
    for run in reversed(runs):
        lists.merge_lists(shards, offsets, run, int(places[run[0]]), index.code_size, merged)
    content = np.fromfile(merged, np.uint8)
    assert len(content) == places[-1]
    for number, size in enumerate(sizes.tolist()):
        codes = faiss.rev_swig_ptr(expected.invlists.get_codes(number), size * index.code_size)
        ids = faiss.rev_swig_ptr(expected.invlists.get_ids(number), size)
        wanted = np.concatenate([codes, ids.view(np.uint8)])
        assert np.array_equal(content[places[number] : places[number + 1]], wanted)

    values = np.fromfile(merged, np.float32)
    seen = []
    for shard, begins in lists.vector_places(shards, offsets, range(0, shards.count, 2), index.code_size, 4):
        for item, begin in zip(shards.items(shard), begins.tolist(), strict=True):
            assert np.array_equal(values[begin : begin + DIM], vectors[item])
            seen.append(item)
    assert seen == [item for shard in range(0, shards.count, 2) for item in shards.items(shard)]


def test_two_billion_items_take_a_million_opens_and_runs_of_a_gigabyte() -> None:
    code_size, shard_items, num_items = 256, 4_000_000, 2_000_000_000
    rng = np.random.default_rng(0)
    sizes = rng.multinomial(num_items, rng.dirichlet(np.full(178_885, 2.0))).astype(np.int64)
    runs = list(lists.merge_runs(sizes, code_size))
    places = lists.list_places(sizes, code_size)
    assert max(int(places[end] - places[first]) for first, end in runs) <= 1 << 30
    opens_a_shard = 4  # codes and items, each for its header and to be read
    assert len(runs) * (num_items // shard_items) * opens_a_shard < 1.1e6


def test_small_indexes_are_merged_in_runs_of_64_megabytes() -> None:
    sizes = np.full(1000, 1000, np.int64)
    runs = list(lists.merge_runs(sizes, 512))
    places = lists.list_places(sizes, 512)
    assert max(int(places[end] - places[first]) for first, end in runs) <= 64 << 20
    assert len(runs) == -(-int(places[-1]) // (64 << 20))
