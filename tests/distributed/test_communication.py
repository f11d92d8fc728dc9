"""Embeddings and gradients that travel rounded between two real gloo ranks, against fp32."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mtmh.modules.sparse_nn import SparseNN
from synthetic_dataset import pair_loader
from tiny_run import tiny_config, write_inputs
from torch import Tensor

from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.distributed.communication import items_at_a_time
from mtmh.distributed.ranks import Ranks, join_ranks
from mtmh.distributed.sharding import local_shards, shard
from mtmh.training.model_builder import build_model
from mtmh.training.padding import of_one_size
from mtmh.training.task import items_per_step

KINDS = {"table_wise": "rowwise_adagrad", "row_wise": "rowwise_adagrad", "column_wise": "adagrad"}
# Largest error of a value: share of the largest one. Twice half a unit in the last place: sums are rounded again.
ERRORS = {"fp16": 2**-10, "bf16": 2**-7, "int8": 1.1 / 255, "mx4": 0.25}
SUMS = {"int8": ("fp16", "bf16"), "mx4": ("fp16", "bf16")}  # of tables cut by rows: forward, backward


def config_of(root: Path, kind: str, forward: str = "fp32", backward: str = "fp32") -> Config:
    return tiny_config(
        root,
        model={"id_dropout": 0.0, "feature_dims": {"brand": 4}, "heads": [{"name": "engagement"}]},
        sharding={"default": kind, "communication": {"forward": forward, "backward": backward}},
        training={"optimizer": KINDS[kind], "learning_rate": 1.0},
    )


def pooled_and_moved(config: Config, ranks: Ranks) -> tuple[Tensor, dict[str, Tensor]]:
    """This rank's pooled embeddings of a batch [U, sum of widths], and what a step on known gradients did to tables.

    That is where the rows are afterwards: a row has moved by its gradient over the size of it, so by about 1.
    """
    dataset = open_dataset(config.dataset_dir)
    loader = pair_loader(dataset, config, ranks.rank, ranks.world_size)
    own = next(loader.iterate())
    batch = next(of_one_size(loader.iterate(), items_at_a_time(config.sharding.communication)))
    model = build_model(config.model, dataset.summary.features, ranks.device, tables=torch.device("meta"))
    sharded, _ = shard(
        model,
        config.sharding,
        ranks,
        items_per_step=items_per_step(config.training, config.loss),
        training=config.training,
        seed=config.seed,
    )
    (sparse,) = (module for module in sharded.modules() if isinstance(module, SparseNN))
    pooled: Tensor = sparse(batch.sparse)[: len(own.item_index)]
    gradient = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(ranks.rank))
    (pooled * gradient).sum().backward()
    if config.training.optimizer == "adagrad":
        # A first step moves every value by the learning rate; the sums tell how large its gradient was.
        states = sharded.fused_optimizer.state_dict()["state"].values()
        sums = [(name, value) for entries in states for name, value in entries.items() if len(value.size()) == 2]
        return pooled.detach(), {name: piece.sqrt() / piece.sqrt().max() for name, piece in pieces_of(sums)}
    tables = [(name, value) for name, value in sharded.state_dict().items() if "embedding_bags" in name]
    return pooled.detach(), {name: piece.clone() for name, piece in pieces_of(tables)}


def pieces_of(tensors: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """This rank's pieces of sharded tensors."""
    for name, value in tensors:
        for offsets, piece in local_shards(value):
            yield f"{name} {offsets}", piece


def run(rank: int, world_size: int, root: Path) -> None:
    """Writes the largest errors of this rank, by kind of sharding, direction and precision."""
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=world_size)
    errors = []
    with join_ranks("cpu") as ranks:
        for kind in KINDS:
            exact, moved = pooled_and_moved(config_of(root, kind), ranks)
            for precision in ERRORS:
                found, _ = pooled_and_moved(config_of(root, kind, forward=precision), ranks)
                errors.append((kind, "forward", precision, float((found - exact).abs().max() / exact.abs().max())))
                same, tables = pooled_and_moved(config_of(root, kind, backward=precision), ranks)
                assert torch.equal(same, exact)
                assert tables.keys() == moved.keys()
                off = max((float((piece - moved[name]).abs().max()) for name, piece in tables.items()), default=0.0)
                errors.append((kind, "backward", precision, off))
    dist.destroy_process_group()
    (root / f"errors-{rank}.json").write_text(json.dumps(errors))


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], float]:
    """The larger of both ranks."""
    root = tmp_path_factory.mktemp("communication")
    write_inputs(root)
    mp.start_processes(run, args=(2, root), start_method="forkserver", nprocs=2)
    found: dict[tuple[str, str, str], float] = {}
    for rank in range(2):
        for kind, direction, precision, error in json.loads((root / f"errors-{rank}.json").read_text()):
            key = (kind, direction, precision)
            found[key] = max(found.get(key, 0.0), error)
    return found


def allowed(kind: str, precision: str, direction: int) -> float:
    return ERRORS[SUMS[precision][direction] if kind == "row_wise" and precision in SUMS else precision]


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_off_by_their_rounding(
    errors: dict[tuple[str, str, str], float], kind: str, precision: str
) -> None:
    limit = allowed(kind, precision, 0)
    assert limit / 20 < errors[kind, "forward", precision] <= limit


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_off_by_their_rounding(
    errors: dict[tuple[str, str, str], float], kind: str, precision: str
) -> None:
    """Errors of gradients, which are up to 4 here, where the largest of their effects are about 1."""
    limit = 4 * allowed(kind, precision, 1)
    assert limit / 100 < errors[kind, "backward", precision] <= limit
