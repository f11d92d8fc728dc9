"""The benchmark of wrong teachers: which rows are wrong under a seed, and one figure of several seeds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_dataset import NUM_ITEMS, make_config, random_histories, write_dataset

from benchmarks.teacher_noise import draw, over_seeds, write_wrong_teacher
from mtmh.artifacts import write_artifact
from mtmh.data.content_store import EMBEDDINGS
from mtmh.evaluation.metrics import Estimate


def test_a_share_of_the_rows_trade_places_by_seed(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    dataset = write_dataset(config.dataset_dir, random_histories(10))
    vectors = np.eye(NUM_ITEMS, dtype=np.float32)
    with write_artifact(config.content_dir, "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / EMBEDDINGS, vectors)
    moved = []
    for seed in (0, 1):
        out = tmp_path / f"wrong-{seed}"
        write_wrong_teacher(config, out, 0.5, seed)
        rows = np.load(out / EMBEDDINGS).argmax(axis=1)
        assert sorted(rows) == list(range(NUM_ITEMS))
        moved.append(frozenset(np.flatnonzero(rows != np.arange(NUM_ITEMS)).tolist()))
        assert len(moved[-1]) <= NUM_ITEMS // 2
    assert moved[0]
    assert moved[0] != moved[1]


def test_one_figure_of_several_seeds(tmp_path: Path) -> None:
    found = [
        {"L2 match, merged": Estimate(value=value, standard_error=0.01, low=value, high=value)} for value in (0.2, 0.3)
    ]
    interval = over_seeds(found)["L2 match, merged"]
    assert (interval.value, interval.num_seeds) == (pytest.approx(0.25), 2)
    assert interval.half == pytest.approx(1.96 * math.sqrt(0.01**2 + 0.005 / 2), rel=1e-3)
    picture = tmp_path / "noise.svg"
    draw({0.0: over_seeds(found), 1.0: over_seeds(found[:1])}, picture)
    assert picture.read_text().count(">merged<") == 1
