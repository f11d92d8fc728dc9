"""Distances of rare items' embeddings on their way: grouped by updates, and measured on a tiny training run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import tiny_config, write_inputs

from mtmh.data.dataset import open_dataset
from mtmh.papers.convergence import drift, measure_convergence, rare_items, read_drifts


def test_distances_are_grouped_by_updates_so_far() -> None:
    vectors = np.array([[[0.0, 3.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]], np.float32)
    found = drift("engagement", vectors, np.array([[0, 5], [2, 6], [9, 9]]))
    assert found.updates == [0, 2, 4]
    assert found.distance == [3.0, 1.0, 1.0]  # the last: item 1 at both checkpoints
    assert found.half == [0.0, 0.0, 0.0]


def test_rare_items_have_events_but_few() -> None:
    assert rare_items(np.array([0, 1, 10, 11])).tolist() == [1, 2]


def test_a_run_is_watched_once(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    config = tiny_config(tmp_path, training={"epochs": 4})
    path = measure_convergence(config)
    engagement, relevance = read_drifts(path)
    assert (engagement.head, relevance.head) == ("engagement", "relevance")
    assert engagement.updates == sorted(engagement.updates)
    assert engagement.distance[-1] < engagement.distance[0]
    # Updates are counted as training made them: its last checkpoint stands for all of its batches.
    assert max(engagement.updates) <= max(int(p.name[5:]) for p in config.model_dir("checkpoints").glob("step-*"))
    assert (open_dataset(config.dataset_dir).item_table.train_count > 0).any()
    before = path.stat().st_mtime_ns
    assert measure_convergence(config).stat().st_mtime_ns == before
    assert json.loads(path.read_text())["made_from"]["settings"]["training.batch_size"] == 48
    auto = config.model_copy(update={"training": config.training.model_copy(update={"epochs": "auto"})})
    with pytest.raises(ValueError, match="length of its own"):
        measure_convergence(auto)
