"""Recall of relations: by hand, with pairs in two relations, and items that nothing is known of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_matrix
from synthetic_dataset import write_dataset

from benchmarks.relations import (
    markdown,
    measure,
    nearest_by_co_occurrence,
    nearest_vectors,
    read_pairs,
    without_shared,
)


def test_recall_by_hand() -> None:
    pairs = np.array([[0, 1], [0, 2], [1, 0], [3, 0]])
    neighbours = {
        "engagement head": np.array([[1, 3], [0, 2], [3, 1], [-1, -1]]),
        "relevance head": np.array([[3, 1], [2, 3], [0, 1], [-1, -1]]),
    }
    first, second, difference = measure("cited", pairs, neighbours, [1, 2])
    # Of item 3 nothing is known. Of the two items that are related to item 0 one fits in a list of one.
    assert first["items"] == 2
    assert [first["recall"][k]["value"] for k in (1, 2)] == pytest.approx([1.0, (0.5 + 1.0) / 2])
    assert [second["recall"][k]["value"] for k in (1, 2)] == pytest.approx([0.0, (0.5 + 0.0) / 2])
    assert difference["way"] == "engagement head less relevance head"
    assert difference["recall"][1]["value"] == pytest.approx(1.0)
    assert "| cited | 2 | engagement head | 100.00 ±0.00 | 75.00 ±" in markdown([first], [1, 2])


def test_pairs_in_two_relations_are_in_neither() -> None:
    found = without_shared({"a": np.array([[0, 1], [1, 0], [2, 3]]), "b": np.array([[1, 0], [4, 2]])})
    assert found["a"].tolist() == [[0, 1], [2, 3]]
    assert found["b"].tolist() == [[4, 2]]


def test_neighbours_are_the_nearest_others() -> None:
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1]], np.float32)
    assert nearest_vectors(vectors, 2).tolist() == [[1, 2], [0, 2], [1, 0]]
    engaged = csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0]]))
    found = nearest_by_co_occurrence(engaged, 2)
    assert found.tolist() == [[1, 2], [0, 2], [1, 0], [-1, -1]]


def test_pairs_are_read_by_id_once_and_without_strangers(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[0, 1, 2]], num_items=4)
    ids = dataset.item_ids
    table = pa.table({"item": [ids[0], ids[0], ids[1], ids[2]], "other": [ids[1], ids[1], 999_999, ids[2]]})
    pq.write_table(table, tmp_path / "edges.parquet")
    assert read_pairs(dataset, tmp_path / "edges.parquet").tolist() == [[0, 1]]
    pq.write_table(pa.table({"from": [1]}), tmp_path / "wrong.parquet")
    with pytest.raises(ValueError, match="expected item and other"):
        read_pairs(dataset, tmp_path / "wrong.parquet")
