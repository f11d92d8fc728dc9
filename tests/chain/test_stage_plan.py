"""The plan of a chain: its arithmetic on small cases, and what it says about two billion items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import tiny_config, write_inputs
from typer.testing import CliRunner

from mtmh.chain.stage_plan import StagePlan, num_pairs, plan_stages
from mtmh.cli import app
from mtmh.config import Config, PairsConfig
from mtmh.data.dataset import open_dataset
from mtmh.data.schema import ITEM_TABLE, ITEMS
from mtmh.distributed.hardware import Cluster
from mtmh.training.plan import make_plan

CLUSTER = Cluster("a100-80gb", num_hosts=6, ranks_per_host=8)
NUM_ITEMS, NUM_EVENTS = 2_000_000_000, 10_000_000_000


def recipe(root: Path, **sections: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "m",
        "paths": {"root": str(root)},
        "data": {"source": "synthetic", "memory_limit_gb": 100, "threads": 50},
        "plan": {
            "rows": {"item_id": NUM_ITEMS},
            "num_floats": 8,
            "events": NUM_EVENTS,
            "users": 100_000_000,
            "content_dim": 64,
        },
        "model": {"embedding_dim": 32, "embedding_dtype": "fp16", "head_dim": 128},
        "sharding": {"default": "row_wise"},
        "training": {"batch_size": 98304, "num_shards": 48},
    }
    return Config.model_validate(tree | sections)


def stages(config: Config) -> dict[str, StagePlan]:
    return {stage.name: stage for stage in plan_stages(config, CLUSTER, make_plan(config, CLUSTER))}


def test_pairs_of_an_epoch_are_those_of_equal_histories() -> None:
    for length, window, direction in ((3, 20, "forward"), (30, 7, "forward"), (20, 20, "both")):
        pairs = PairsConfig(window=window, direction=direction)
        by_hand = sum(min(place, window) for place in range(length)) * (2 if direction == "both" else 1)
        assert num_pairs(11 * length, 11, pairs) == pytest.approx(11 * by_hand)


def test_defaults_break_at_two_billion_items_and_the_plan_says_by_what(tmp_path: Path) -> None:
    found = stages(recipe(tmp_path))
    assert [*found] == ["prepare", "content", "train", "embed", "train-preranker", "build-index", "evaluate", "serve"]
    said = "\n".join(f"{name}: {problem}" for name, stage in found.items() for problem in stage.breaks)
    assert "train-preranker: 7,200 GB of neighbours" in said
    assert "build-index: 262,144 sampled vectors cap the clusters at 32,768 of 178,885" in said
    assert "merging opens files 118,287,768 times" in said
    assert "--set index.shard_items=4000000" in said
    assert "evaluate: evaluation.exact_search holds 2,048 GB" in said
    assert "yardstick teacher holds 512 GB" in said
    assert found["prepare"].breaks == []
    assert found["prepare"].hours == pytest.approx(NUM_EVENTS / (100_000 * 50) / 3600)
    assert found["embed"].disk == 2 * 128 * 4 * NUM_ITEMS
    # fp16 tables of 32, and four bytes of the optimizer a row: the estimator counts two; three files at a time.
    assert found["train"].disk >= 3 * NUM_ITEMS * 32 * 2
    assert found["train"].mapped == NUM_ITEMS * (12 + 4 * 8 + 8 + 4 * 64)


def test_settings_of_that_size_leave_nothing_that_breaks(tmp_path: Path) -> None:
    large = recipe(
        tmp_path,
        retrieval={"sorter": "head-score"},
        index={"storage": "fp16", "train_sample": 1_500_000, "shard_items": 4_000_000},
        evaluation={"exact_search": False, "yardsticks": []},
    )
    found = stages(large)
    assert "train-preranker" not in found
    assert {name: stage.breaks for name, stage in found.items()} == {name: [] for name in found}
    lists = 2 * (2 * 128 + 8) * NUM_ITEMS
    items = (150 + 20) * NUM_ITEMS
    near = 2 * 16 * 4 * NUM_ITEMS  # numbers of 178,885 clusters, a quarter of the vector at most
    assert found["serve"].mapped == lists + near + items
    assert found["build-index"].disk == 2 * lists + near + items
    assert found["build-index"].memory >= 28 * NUM_ITEMS
    small = Cluster("cpu", num_hosts=1, ranks_per_host=8)
    run = make_plan(large, CLUSTER)
    (prepared,) = [stage for stage in plan_stages(large, small, run) if stage.name == "train"]
    assert prepared.breaks == []
    tight = large.model_copy(update={"data": large.data.model_copy(update={"memory_limit_gb": 500})})
    (prepared, *_) = plan_stages(tight, small, run)
    assert "in the memory of a host, which has 550 GB" in prepared.breaks[0]


def test_sizes_are_those_of_the_dataset_where_there_is_one(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    config = tiny_config(tmp_path, plan={"rows": {"item_id": NUM_ITEMS}})
    dataset, cluster = open_dataset(config.dataset_dir), Cluster("cpu", num_hosts=1, ranks_per_host=2)
    found = {stage.name: stage for stage in plan_stages(config, cluster, make_plan(config, cluster))}
    summary, items = dataset.summary, dataset.artifact.path / ITEMS
    assert found["prepare"].hours == pytest.approx(summary.num_train_events / (100_000 * config.data.threads) / 3600)
    assert found["serve"].memory == 0
    assert found["serve"].mapped > max(items.stat().st_size, 150 * summary.num_items) + 20 * summary.num_items
    assert found["embed"].disk == 4 * len(config.model.heads) * config.model.head_dim * summary.num_items
    content = np.load(config.content_dir / "embeddings.npy")
    files = sum(file.stat().st_size for file in (dataset.artifact.path / ITEM_TABLE).iterdir())
    assert found["train"].mapped == pytest.approx(files + content.nbytes, rel=0.3)  # headers, tags with several values
    assert not any(stage.breaks for stage in found.values())


def test_the_verb_prints_a_line_a_stage(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(tmp_path).model_dump_json())
    ran = CliRunner().invoke(app, ["plan", str(path), "--hosts", "6", "--gpus", "8"])
    assert ran.exit_code == 0, ran.output
    lines = [line.split()[0] for line in ran.output.splitlines() if line.strip()]
    assert {"prepare", "content", "train", "embed", "build-index", "evaluate", "serve"} <= {*lines}
    assert "evaluate: evaluation.exact_search holds" in " ".join(ran.output.split())
