"""The comparison with another library's sequence models: what is trained on, and the figures of lists by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.sequence_models import CUTS, LENGTH, measured, read_sequences


def test_the_last_event_is_asked_for_and_not_trained_on(tmp_path: Path) -> None:
    ratings = ["2,50,4.0,7", "1,30,5.0,3", "1,10,4.0,1", "1,20,3.0,2", "1,40,3.5,2", "2,10,4.0,9", "3,10,4.0,1"]
    ratings += [f"4,{item},4.0,{item}" for item in range(100, 160)]
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]))
    pieces, wanted = read_sequences(path, None)  # users 2 and 3 have fewer than three events
    items = np.array([10, 30, 40, 50, *range(100, 160)])
    assert items[wanted - 1].tolist() == [30, 159]
    assert np.diff(pieces.offsets).tolist() == [2, LENGTH]
    assert items[pieces.rows - 1].tolist() == [10, 40, *range(109, 159)]
    assert pieces.times.tolist()[:2] == [1, 2]


def test_figures_of_lists() -> None:
    lists = np.zeros((4, CUTS[-1]), np.int64)
    lists[0, 0], lists[1, 2], lists[2, 10] = 7, 7, 7
    found = measured(lists, np.full(4, 7))
    assert (found["recall@10"], found["recall@100"]) == (50.0, 75.0)
    assert found["NDCG@10"] == pytest.approx(25.0 * (1.0 + 0.5), abs=0.01)
    assert found["NDCG@100"] == pytest.approx(25.0 * (1.5 + 1.0 / math.log2(12)), abs=0.01)
