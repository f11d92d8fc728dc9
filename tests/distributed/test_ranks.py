"""Runs the whole trainer on 1, 2 and 3 real gloo ranks and compares what comes out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_run import losses_of, read_whole, state_of, tiny_config, write_inputs
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from mtmh.config import Config, decisive
from mtmh.data.content_store import open_content
from mtmh.data.dataset import open_dataset
from mtmh.distributed.finite import NonFiniteStateError, check_finite
from mtmh.distributed.optimizers import build_optimizer
from mtmh.distributed.ranks import Ranks, gather_numbers, gather_rows, join_ranks, on_all, on_first
from mtmh.distributed.sharding import shard
from mtmh.distributed.state_files import State, write_state
from mtmh.training.checkpoint import Checkpoints, RunRecord, training_state
from mtmh.training.frequencies import streaming_frequencies
from mtmh.training.model_builder import build_model, load_model
from mtmh.training.newest import latest_checkpoint
from mtmh.training.task import TrainTask, items_per_step
from mtmh.training.trainer import train

STEPS = 5
WORLD_SIZES = (1, 2, 3)
PLANS: dict[str, tuple[dict[str, Any], str]] = {
    # name: (sharding, optimizer)
    "free": ({}, "rowwise_adagrad"),
    "table_wise": ({"default": "table_wise"}, "rowwise_adagrad"),
    "row_wise": ({"default": "row_wise"}, "rowwise_adagrad"),
    "copies": ({"default": "data_parallel"}, "rowwise_adagrad"),
    "mixed": ({"default": "table_wise", "tables": {"item_id": "row_wise"}}, "rowwise_adagrad"),
    "rows_full": ({"default": "row_wise"}, "adagrad"),
    "columns_full": ({"default": "column_wise"}, "adagrad"),
    "mixed_full": ({"tables": {"item_id": "row_wise", "brand": "data_parallel", "tags": "column_wise"}}, "adagrad"),
}
SEMANTIC_HEADS = [
    {"name": "both", "semantic_weight": 10.0},
    {"name": "semantic", "engagement_weight": 0.0, "semantic_weight": 1.0},
]
LOSSES: dict[str, dict[str, Any]] = {
    "uniform_only": {"in_batch_negatives": False, "mask_history": False},
    "streaming": {"log_q": "streaming", "log_q_rate": 0.3},
    "semantic": {"semantic": {"threshold": 0.4, "share": 0.5}},
    "gradnorm": {"weighting": "gradnorm", "gradnorm": {"learning_rate": 0.1, "every": 2}},
    "fewer_candidates": {"in_batch_share": 0.4},
    "uncorrected": {
        "log_q": "none",
        "num_uniform_negatives": 0,
        "propensity": {"count_of": "both", "a": 1.0, "b": 0.5},
    },
}


def plan_config(root: Path, world_size: int, plan: str) -> Config:
    sharding, optimizer = PLANS[plan]
    return tiny_config(
        root,
        f"{plan}-{world_size}",
        sharding=sharding,
        training={"optimizer": optimizer, "max_steps": STEPS},
    )


def loss_config(root: Path, world_size: int, loss: str) -> Config:
    model = {"heads": SEMANTIC_HEADS} if loss == "semantic" else {}
    return tiny_config(root, f"{loss}-{world_size}", model=model, loss=LOSSES[loss], training={"max_steps": STEPS})


def handover_config(root: Path, world_size: int, steps: int) -> Config:
    """Runs of 3 steps on 2 ranks, which others copy and continue."""
    return tiny_config(root, f"handover-{world_size}", loss=LOSSES["streaming"], training={"max_steps": steps})


def run_everything(rank: int, world_size: int, root: Path) -> None:
    """The work of one rank; all world sizes run the same."""
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    if world_size > 1:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"file://{root}/store-{world_size}", rank=rank, world_size=world_size
        )
    with join_ranks("cpu") as ranks:
        check_gathers(rank, world_size)
        check_a_bad_piece_stops_all(ranks)
        for plan in PLANS:
            train(plan_config(root, world_size, plan))
        for loss in LOSSES:
            train(loss_config(root, world_size, loss))
        if world_size == 2:
            train(handover_config(root, 2, 3))
        else:
            config = handover_config(root, world_size, STEPS)
            on_first(ranks, lambda: shutil.copytree(root / "handover-2-at-3", config.model_dir("checkpoints").parent))
            resave(config, root / f"resaved-{world_size}")
            train(config)
    if world_size > 1:
        dist.destroy_process_group()


def check_gathers(rank: int, world_size: int) -> None:
    sizes = [2 * other + (other == 0) for other in range(world_size)]
    rows = torch.full((sizes[rank], 3), float(rank), dtype=torch.float64, requires_grad=True)
    gathered = gather_rows(rows, sizes)
    expected = torch.cat([torch.full((size, 3), float(other)) for other, size in enumerate(sizes)])
    assert torch.equal(gathered, expected.double())
    # Rank r weighs copy l with (r + 1) * l, so the owner of row l gets the sum of those.
    weights = torch.arange(len(gathered), dtype=torch.float64)[:, None]
    (gathered * weights * (rank + 1)).sum().backward()
    first = sum(sizes[:rank])
    own = weights[first : first + sizes[rank]] * sum(range(1, world_size + 1))
    assert rows.grad is not None
    assert torch.equal(rows.grad, own.expand(-1, 3))
    assert gather_numbers(torch.tensor([rank, 7.0], dtype=torch.float64)) == [[r, 7.0] for r in range(world_size)]
    with join_ranks("cpu") as ranks, pytest.raises(ValueError, match="only the first rank saw it"):
        on_first(ranks, _fail)
    assert on_all(lambda: 2 * rank) == [2 * other for other in range(world_size)]
    with pytest.raises(ValueError, match="only the last rank saw it"):
        on_all(lambda: _fail_on(rank, world_size - 1))


def check_a_bad_piece_stops_all(ranks: Ranks) -> None:
    mesh = init_device_mesh("cpu", (ranks.world_size,))
    own = torch.ones(2, dtype=torch.float16)
    state: State = {"whole": torch.tensor([1, 2]), "cut": DTensor.from_local(own, mesh, [Shard(0)]), "none": own[:0]}
    check_finite(state, 3)
    if ranks.rank == ranks.world_size - 1:
        own[1] = -torch.inf
    with pytest.raises(NonFiniteStateError, match=r"^step 4: .* in cut\."):
        check_finite(state, 4)


def _fail_on(rank: int, last: int) -> int:
    if rank == last:
        raise ValueError("only the last rank saw it")
    return rank


def _fail() -> int:
    raise ValueError("only the first rank saw it")


def resave(config: Config, folder: Path) -> None:
    """Restores the checkpoint of another number of ranks and writes the state again."""
    with join_ranks("cpu") as ranks:
        dataset = open_dataset(config.dataset_dir)
        content = open_content(config.content_dir, dataset)
        inputs = {"dataset": dataset.artifact, "content": content.artifact}
        checkpoints = Checkpoints(
            config.model_dir("checkpoints"),
            RunRecord.of_dataset(config.model_dump(mode="json"), decisive(config, "checkpoint"), dataset, inputs),
            ranks,
        )
        found = checkpoints.find(resume=True)
        assert found is not None
        model = build_model(config.model, dataset.summary.features, ranks.device, tables=torch.device("meta"))
        frequencies = streaming_frequencies(config.loss, config.training.batch_size, dataset.item_table, ranks)
        assert frequencies is not None
        checkpoints.add("frequencies", frequencies)
        sharded, _ = shard(
            TrainTask(model, config.loss, config.seed, frequencies),
            config.sharding,
            ranks,
            items_per_step=items_per_step(config.training, config.loss),
            training=config.training,
            seed=config.seed,
        )
        optimizer = build_optimizer(sharded, config.training)
        assert checkpoints.restore(found, training_state(sharded, optimizer)) == 3
        parts = {f"frequencies.{name}": value for name, value in frequencies.state().items()}
        write_state(training_state(sharded, optimizer) | parts, folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of all world sizes."""
    root = tmp_path_factory.mktemp("ranks")
    write_inputs(root)
    run_on(2, root)
    (root / "handover-2").rename(root / "handover-2-at-3")
    run_on(3, root)
    run_everything(0, 1, root)
    return root


def run_on(world_size: int, root: Path) -> None:
    run: Callable[[int, int, Path], None] = run_everything
    mp.start_processes(run, args=(world_size, root), start_method="forkserver", nprocs=world_size)


def assert_same_run(first: Config, other: Config) -> None:
    losses, expected = losses_of(first), losses_of(other)
    assert losses.keys() == expected.keys() == set(range(1, STEPS + 1))
    for step, heads in expected.items():
        for head, parts in heads.items():
            assert losses[step][head] == pytest.approx(parts, rel=1e-5)
    weights, expected_weights = (
        load_model(latest_checkpoint(config.model_dir("checkpoints"))).state_dict() for config in (first, other)
    )
    assert weights.keys() == expected_weights.keys()
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("plan", ["free", "table_wise", "row_wise", "copies", "mixed"])
def test_losses_and_weights_do_not_depend_on_ranks_or_plan(root: Path, plan: str, world_size: int) -> None:
    assert_same_run(plan_config(root, world_size, plan), plan_config(root, 1, "table_wise"))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("plan", ["rows_full", "columns_full", "mixed_full"])
def test_full_adagrad_allows_column_plans(root: Path, plan: str, world_size: int) -> None:
    assert_same_run(plan_config(root, world_size, plan), plan_config(root, 1, "rows_full"))


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_other_losses_do_not_depend_on_ranks(root: Path, loss: str, world_size: int) -> None:
    assert_same_run(loss_config(root, world_size, loss), loss_config(root, 1, loss))


@pytest.mark.parametrize("world_size", [2, 3])
def test_balanced_weights_do_not_depend_on_ranks(root: Path, world_size: int) -> None:
    states = [
        state_of(latest_checkpoint(loss_config(root, size, "gradnorm").model_dir("checkpoints")))
        for size in (world_size, 1)
    ]
    weights, expected = (state["loss.grad_norm.weights"] for state in states)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    begun = torch.tensor([[1.0, 1.0], [0.0, 0.5], [0.0, 0.0]])
    assert expected.sum().item() == pytest.approx(begun.sum().item())
    assert ((expected - begun).abs()[begun > 0] > 0.01).all()


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_checkpoint_of_2_ranks_restores_exactly_on_other_numbers(root: Path, world_size: int) -> None:
    written = state_of(latest_checkpoint(root / "handover-2-at-3" / "checkpoints"))
    restored = read_whole(root / f"resaved-{world_size}")
    assert any(name.startswith("optimizer.tables.") for name in written)
    assert any(name.startswith("optimizer.towers.") for name in written)
    assert any(name.startswith("frequencies.") for name in written)
    assert restored.keys() == written.keys()
    for name, value in written.items():
        assert torch.equal(restored[name], value), name


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_run_goes_on_on_another_number_of_ranks(root: Path, world_size: int) -> None:
    config, alone = handover_config(root, world_size, STEPS), loss_config(root, 1, "streaming")
    assert_same_run(config, alone)
    frequencies, expected = (frequencies_of(run) for run in (config, alone))
    assert all(torch.equal(frequencies[name], value) for name, value in expected.items())


@pytest.mark.parametrize("world_size", [2, 3])
def test_frequencies_do_not_depend_on_ranks(root: Path, world_size: int) -> None:
    frequencies, expected = (frequencies_of(loss_config(root, size, "streaming")) for size in (world_size, 1))
    assert frequencies.keys() == expected.keys() == {f"frequencies.{n}" for n in ("gap", "last_step", "num_hits")}
    assert expected["frequencies.last_step"].max() == STEPS
    for name, value in expected.items():
        assert torch.equal(frequencies[name], value), name


def frequencies_of(config: Config) -> dict[str, Tensor]:
    state = state_of(latest_checkpoint(config.model_dir("checkpoints")))
    return {name: value for name, value in state.items() if name.startswith("frequencies.")}
