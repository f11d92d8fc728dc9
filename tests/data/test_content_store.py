"""Content embeddings belong to one dataset."""

from __future__ import annotations

import os
import queue
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from synthetic_dataset import NUM_ITEMS, random_histories, write_dataset

from mtmh.artifacts import write_artifact
from mtmh.data import content_store
from mtmh.data.content_store import EMBEDDINGS, open_content
from mtmh.data.dataset import Dataset


def write_content(path: Path, dataset: Dataset, embeddings: npt.NDArray[Any]) -> Path:
    with write_artifact(path, "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / EMBEDDINGS, embeddings)
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_gather_takes_the_rows_asked_for_as_they_are_stored(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_histories(5))
    embeddings = np.random.default_rng(0).standard_normal((NUM_ITEMS, 8)).astype(dtype)
    content = open_content(write_content(tmp_path / "content", dataset, embeddings), dataset)
    found = content.gather(np.array([4, 59, 4]))
    assert content.dim == 8
    assert found.numpy().dtype == dtype
    assert found.numpy().tolist() == embeddings[[4, 59, 4]].tolist()


@pytest.mark.parametrize("room", [0, 1 << 40], ids=["larger than memory", "fits"])
def test_random_reads_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """On several threads where the file does not fit, read once in order by one process of a host where it does."""
    dataset = write_dataset(tmp_path / "dataset", random_histories(5))
    embeddings = np.random.default_rng(0).standard_normal((NUM_ITEMS, 8)).astype(np.float16)
    content = open_content(write_content(tmp_path / "content", dataset, embeddings), dataset)
    read: queue.SimpleQueue[int] = queue.SimpleQueue()
    whole = content_store._read_through
    monkeypatch.setattr(content_store, "_read_through", lambda path: read.put(whole(path)))
    monkeypatch.setattr(content_store, "_free_memory", lambda: room)
    content.expect_random_reads(reads_for_host=False)
    assert read.empty()
    assert (content._readers is None) == bool(room)
    content.expect_random_reads(reads_for_host=True)
    if room:
        assert read.get(timeout=60) == (content.artifact.path / EMBEDDINGS).stat().st_size
    assert read.empty()
    for indices in (np.arange(NUM_ITEMS)[::-1], np.array([4, 59, 4]), np.array([], np.int64)):
        assert content.gather(indices).numpy().tolist() == embeddings[indices].tolist()


def test_the_free_memory_of_this_host() -> None:
    assert 1 << 20 < content_store._free_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_content_of_another_dataset_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_histories(5))
    other = write_dataset(tmp_path / "other", random_histories(5), seed=1)
    path = write_content(tmp_path / "content", other, np.zeros((NUM_ITEMS, 8), np.float16))
    with pytest.raises(ValueError, match="belong to another dataset"):
        open_content(path, dataset)


@pytest.mark.parametrize("embeddings", [np.zeros((NUM_ITEMS - 1, 8), np.float16), np.zeros((NUM_ITEMS, 8))])
def test_other_shapes_and_dtypes_are_refused(tmp_path: Path, embeddings: npt.NDArray[Any]) -> None:
    dataset = write_dataset(tmp_path / "dataset", random_histories(5))
    path = write_content(tmp_path / "content", dataset, embeddings)
    with pytest.raises(ValueError, match=r"embeddings.npy: expected float16 or float32 \[60, any\], found"):
        open_content(path, dataset)
