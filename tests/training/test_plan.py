"""Plans for machines that are not there, by the real planner."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config, write_inputs
from torchrec.distributed.planner import types as planner_types
from typer.testing import CliRunner

from mtmh.cli import app
from mtmh.config import Config, ShardingConfig, load_config
from mtmh.data.dataset import open_dataset
from mtmh.distributed.hardware import DEVICES, GIB, Cluster, device_like
from mtmh.training.plan import DoesNotFit, make_plan

ROWS = {"item_id": 4_000_000, "brand": 10_000, "tags": 500}
SMALL = Cluster("a100-80gb", num_hosts=2, ranks_per_host=4)


def planned_config(root: Path, **sections: Any) -> Config:
    tree: dict[str, Any] = {
        "name": "m",
        "paths": {"root": str(root)},
        "data": {"source": "synthetic"},
        "plan": {"rows": ROWS, "num_floats": 3},
        "model": {"embedding_dim": 32, "feature_dims": {"tags": 8}},
        "training": {"batch_size": 8192, "num_shards": 8},
    }
    return Config.model_validate(tree | sections)


def test_a_plan_places_every_table_and_accounts_for_its_memory(tmp_path: Path) -> None:
    plan = make_plan(planned_config(tmp_path), SMALL)
    assert {table.name: table.num_rows for table in plan.tables} == ROWS
    assert all(table.ranks and set(table.ranks) <= set(range(8)) for table in plan.tables)
    assert all(table.kernel == "fused" for table in plan.tables)
    assert len(plan.memory) == 8
    cells = ROWS["item_id"] * 32 + ROWS["brand"] * 32 + ROWS["tags"] * 8
    assert sum(rank.weights for rank in plan.memory) == 4 * cells
    # Row-wise Adagrad: a float32 a row; the estimator rounds up by shard.
    assert sum(rank.optimizer for rank in plan.memory) == pytest.approx(4 * sum(ROWS.values()), abs=64)
    assert all(rank.buffers >= 0 and rank.towers > 0 for rank in plan.memory)
    assert all(rank.tables <= plan.usable for rank in plan.memory)
    assert plan.source == "plan.rows"
    assert plan.milliseconds >= plan.bottleneck.milliseconds > 0
    assert plan.bottleneck.table in ROWS


def test_row_wise_spreads_a_table_evenly_over_all_ranks(tmp_path: Path) -> None:
    config = planned_config(tmp_path, sharding={"default": "row_wise"})
    plan = make_plan(config, SMALL)
    assert all(table.sharding_type == "row_wise" and table.ranks == list(range(8)) for table in plan.tables)
    weights = [rank.weights for rank in plan.memory]
    assert max(weights) - min(weights) <= 8 * 4 * (32 + 32 + 8)  # a row or so a table


@pytest.mark.parametrize(("optimizer", "share"), [("rowwise_adagrad", 1 / 32), ("adagrad", 1.0)])
def test_fp16_halves_weights_and_the_optimizer_follows(tmp_path: Path, optimizer: str, share: float) -> None:
    config = planned_config(
        tmp_path,
        plan={"rows": {"item_id": 800_000}},
        model={"embedding_dim": 32, "embedding_dtype": "fp16"},
        sharding={"default": "row_wise"},
        training={"batch_size": 8192, "num_shards": 8, "optimizer": optimizer},
    )
    plan = make_plan(config, SMALL)
    assert [rank.weights for rank in plan.memory] == [100_000 * 32 * 2] * 8
    assert [rank.optimizer for rank in plan.memory] == [round(100_000 * 32 * 2 * share)] * 8


@pytest.mark.parametrize(("eviction", "bytes_a_row"), [("none", 8), ("lru", 12)])
def test_a_table_of_raw_ids_is_cut_by_rows_and_its_id_map_counts(
    tmp_path: Path, eviction: str, bytes_a_row: int
) -> None:
    table = {"rows": 960_000, "eviction": eviction}
    config = planned_config(tmp_path, model={"embedding_dim": 32, "id_tables": {"item_id": table}})
    plan = make_plan(config, SMALL)
    without = make_plan(planned_config(tmp_path, model={"embedding_dim": 32}), SMALL)
    items = next(table for table in plan.tables if table.name == "item_id")
    assert (items.num_rows, items.sharding_type, items.ranks) == (960_000, "row_wise", list(range(8)))
    assert [rank.id_maps for rank in plan.memory] == [120_000 * bytes_a_row] * 8
    assert [rank.towers for rank in plan.memory] == [rank.towers for rank in without.memory]
    assert not any(rank.id_maps for rank in without.memory)


def test_a_copied_table_counts_on_every_rank(tmp_path: Path) -> None:
    config = planned_config(tmp_path, sharding={"tables": {"tags": "data_parallel", "item_id": "row_wise"}})
    plan = make_plan(config, SMALL)
    tags = next(table for table in plan.tables if table.name == "tags")
    assert (tags.kernel, tags.ranks, tags.weight_bytes) == ("dense", list(range(8)), 8 * 500 * 8 * 4)


def test_a_catalogue_beyond_32_bits_is_planned(tmp_path: Path) -> None:
    config = planned_config(
        tmp_path,
        plan={"rows": {"item_id": 3_000_000_000}},
        model={"embedding_dim": 32, "embedding_dtype": "fp16"},
        sharding={"default": "row_wise"},
    )
    plan = make_plan(config, Cluster("a100-80gb", num_hosts=6, ranks_per_host=8))
    assert [rank.weights for rank in plan.memory] == [3_000_000_000 // 48 * 64] * 48


def test_a_table_of_content_is_cut_by_rows_and_counted(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "plan": {"rows": ROWS, "content_dim": 126},
        "model": {"embedding_dim": 32, "feature_dims": {"tags": 8}, "content_dim": 8},
    }
    without, plan = (
        make_plan(planned_config(tmp_path, **sections, content={"storage": storage}), SMALL)
        for storage in ("mapped", "table")
    )
    (table,) = [table for table in plan.tables if table.name == "_content"]
    assert (table.num_rows, table.dim, table.data_type) == (ROWS["item_id"], 128, "fp32")
    assert (table.sharding_type, table.ranks) == ("row_wise", list(range(8)))
    more = [rank.weights - other.weights for rank, other in zip(plan.memory, without.memory, strict=True)]
    assert sum(more) == ROWS["item_id"] * 128 * 4
    assert sum(rank.optimizer for rank in plan.memory) == pytest.approx(
        sum(rank.optimizer for rank in without.memory), abs=64
    ), "it has none"
    assert plan.memory[0].batch == without.memory[0].batch > 0
    backward = [[stage.milliseconds for stage in run.stages if stage.name.startswith("bwd")] for run in (plan, without)]
    assert backward[0] == pytest.approx(backward[1])
    unknown = planned_config(tmp_path, content={"storage": "table"})
    with pytest.raises(ValueError, match=r"plan\.content_dim"):
        make_plan(unknown, SMALL)


def test_a_table_of_two_billion_halves_takes_ten_gigabytes_of_each_of_48(tmp_path: Path) -> None:
    config = planned_config(
        tmp_path,
        plan={"rows": {"item_id": 2_000_000_000}},
        content={
            "storage": "table",
            "kind": "encoder",
            "encoder": {"text": {"model": "random:tiny"}, "dim": 128},
        },
        model={"embedding_dim": 4, "embedding_dtype": "fp16"},
        sharding={"default": "row_wise"},
    )
    plan = make_plan(config, Cluster("a100-80gb", num_hosts=6, ranks_per_host=8))
    (table,) = [table for table in plan.tables if table.name == "_content"]
    assert table.data_type == "fp16"
    assert table.weight_bytes / 48 == pytest.approx(10.7e9, rel=0.01)


def test_a_dataset_takes_precedence_over_planned_rows(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    config = tiny_config(tmp_path, plan={"rows": ROWS})
    plan = make_plan(config, Cluster("cpu", num_hosts=1, ranks_per_host=2))
    features = open_dataset(config.dataset_dir).summary.features.id_features
    assert {table.name: table.num_rows for table in plan.tables} == {
        feature.name: feature.num_rows for feature in features
    }
    assert plan.source == str(config.dataset_dir)


def test_hosts_without_gpus_keep_tables_in_their_memory(tmp_path: Path) -> None:
    plan = make_plan(planned_config(tmp_path), Cluster("cpu", num_hosts=2, ranks_per_host=2))
    assert plan.usable == plan.cluster.rank_memory == 256 * GIB
    assert sum(rank.weights for rank in plan.memory) == sum(table.weight_bytes for table in plan.tables)
    assert all(rank.buffers >= 0 for rank in plan.memory)


def test_a_table_that_fits_no_rank_is_named_with_what_helps(tmp_path: Path) -> None:
    config = planned_config(
        tmp_path,
        plan={"rows": {"item_id": 700_000_000, "brand": 10_000}},
        sharding={"tables": {"item_id": "table_wise"}},
        model={"embedding_dim": 32},
    )
    with pytest.raises(DoesNotFit) as caught:
        make_plan(config, Cluster("a100-40gb", num_hosts=1, ranks_per_host=4))
    message = str(caught.value)
    assert "table item_id (700,000,000 rows x 32, table_wise) needs 86." in message
    assert "GiB over" in message
    assert "table brand" not in message
    assert "\n  --set sharding.tables.item_id=row_wise" in message
    assert "\n  --hosts" not in message, "more hosts do not help a table that stays whole"
    assert "sharding.uvm_caching" in message

    cut = config.model_copy(update={"sharding": ShardingConfig(tables={"item_id": "row_wise"})})
    assert make_plan(cut, Cluster("a100-40gb", num_hosts=1, ranks_per_host=4)).memory


def test_a_table_in_host_memory_takes_its_cache_from_the_gpu(tmp_path: Path) -> None:
    rows = {"item_id": 700_000_000, "brand": 10_000}
    config = planned_config(
        tmp_path,
        plan={"rows": rows},
        sharding={"tables": {"item_id": "table_wise"}, "uvm_caching": {"item_id": 0.1}},
        model={"embedding_dim": 32},
    )
    plan = make_plan(config, Cluster("a100-40gb", num_hosts=1, ranks_per_host=4))
    tables = {table.name: table for table in plan.tables}
    assert tables["item_id"].kernel == "fused_uvm_caching"
    assert tables["brand"].kernel == "fused"
    (holder,) = tables["item_id"].ranks
    assert 0.1 * tables["item_id"].weight_bytes < plan.memory[holder].weights < 0.2 * tables["item_id"].weight_bytes
    assert any("host memory (item_id)" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("name", "gib", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.5, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100-80gb"),
        ("NVIDIA H200", 139.7, "h200-141gb"),
        ("Tesla T4", 14.7, "a100-80gb"),
    ],
)
def test_training_assumes_the_bandwidths_of_the_gpu_it_finds(name: str, gib: float, expected: str) -> None:
    assert device_like(name, int(gib * GIB)) is DEVICES[expected]


def test_between_hosts_of_a_cloud_the_cards_are_shared(tmp_path: Path) -> None:
    config = planned_config(tmp_path, plan={"rows": {"item_id": 50_000_000}}, model={"embedding_dim": 32})
    own, shared = (make_plan(config, Cluster(name, num_hosts=6, ranks_per_host=8)) for name in ("a100-80gb", "p4de"))
    assert DEVICES["p4de"].between_hosts * 8 * 8 == 400.0, "Gb/s of the host"
    assert shared.milliseconds > 2 * own.milliseconds


def test_hosts_that_are_too_few_are_counted(tmp_path: Path) -> None:
    config = planned_config(tmp_path, plan={"rows": {"item_id": 2_000_000_000}}, model={"embedding_dim": 32})
    with pytest.raises(DoesNotFit, match=r"item_id .* over") as caught:
        make_plan(config, Cluster("a100-40gb", num_hosts=1, ranks_per_host=4))
    assert "\n  --set model.embedding_dtype=fp16" in str(caught.value)
    assert "\n  --hosts 2" in str(caught.value)


def test_tables_that_fit_one_by_one_but_not_together(tmp_path: Path) -> None:
    rows = {"item_id": 200_000_000, "a": 200_000_000, "b": 200_000_000}
    config = planned_config(tmp_path, plan={"rows": rows}, sharding={"default": "table_wise"}, model={})
    with pytest.raises(DoesNotFit, match="each table fits on its own, all together need"):
        make_plan(config, Cluster("a100-80gb", num_hosts=1, ranks_per_host=2))


def test_ranks_that_training_would_refuse_are_noted(tmp_path: Path) -> None:
    (note,) = make_plan(planned_config(tmp_path), Cluster("h100-80gb", num_hosts=1, ranks_per_host=3)).notes
    assert "training.num_shards (8)" in note


def test_without_rows_there_is_nothing_to_plan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no dataset at .*plan\.rows is empty"):
        make_plan(planned_config(tmp_path, plan={}), SMALL)


@pytest.mark.parametrize(("rows", "message"), [({"brand": 5}, "needs item_id"), ({"item_id": 0}, "rows")])
def test_wrong_rows_are_refused(tmp_path: Path, rows: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned_config(tmp_path, plan={"rows": rows})


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_every_device_reaches_the_planner_with_and_without_the_factory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(name, num_hosts=2, ranks_per_host=4)
    now = cluster.topology()
    monkeypatch.delattr(planner_types, "TopologyFactory", raising=False)
    before = cluster.topology()
    assert [device.storage for device in now.devices] == [device.storage for device in before.devices]
    assert (now.world_size, now.local_world_size) == (before.world_size, before.local_world_size) == (8, 4)
    for key in ("intra_host_bw", "inter_host_bw", "hbm_mem_bw", "ddr_mem_bw", "hbm_to_ddr_mem_bw"):
        assert getattr(now, key) == getattr(before, key)
    assert now.intra_host_bw == pytest.approx(DEVICES[name].inside_host * 1e6)  # bytes/ms
    assert now.inter_host_bw == pytest.approx(DEVICES[name].between_hosts * 1e6)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    ("device", "hosts", "message"), [("a100", 1, "not one of a100-40gb"), ("cpu", 0, "needs hosts")]
)
def test_wrong_machines_are_refused(device: str, hosts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cluster(device, hosts, 8)


@pytest.mark.parametrize(("recipe", "hosts"), [("a100x8", 1), ("a100x48", 6)])
def test_the_shipped_recipes_suit_their_machines(recipe: str, hosts: int) -> None:
    config = load_config(recipe)
    plan = make_plan(config, Cluster("a100-80gb", hosts, 8))
    assert not any("refuse" in note for note in plan.notes)
    assert config.training.batch_size == 2048 * plan.cluster.world_size


def test_the_verb_prints_a_plan_and_fails_in_one_message(tmp_path: Path) -> None:
    overrides = ["--set", f"paths.root={tmp_path}", "--set", "plan.rows={item_id: 3000000}"]
    done = CliRunner().invoke(app, ["plan", "synthetic", "--hosts", "2", "--gpus", "4", *overrides])
    assert done.exit_code == 0, done.output
    assert "item_id" in done.output
    assert "bottleneck" in done.output
    overrides[-1] = "plan.rows={item_id: 2000000000}"
    failed = CliRunner().invoke(app, ["plan", "synthetic", "--gpus", "1", "--device", "a100-40gb", *overrides])
    assert failed.exit_code == 1
    assert isinstance(failed.exception, SystemExit), "no traceback"
    assert "table item_id" in failed.output


def test_the_help_names_every_device() -> None:
    printed = CliRunner().invoke(app, ["plan", "--help"], env={"COLUMNS": "200"}).output
    assert [device for device in DEVICES if not re.search(rf"\b{device}\b(?!-)", printed)] == []
