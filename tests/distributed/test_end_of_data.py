"""Uneven or ending data: two real gloo ranks stop together, begin a second epoch, and refuse to be empty."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from synthetic_dataset import pair_loader, write_dataset
from tiny_run import losses_of, tiny_config

from mtmh.artifacts import open_artifact
from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.distributed.ranks import join_ranks
from mtmh.training.newest import latest_checkpoint
from mtmh.training.padding import of_one_size
from mtmh.training.trainer import train

NUM_ITEMS, WINDOW, BATCH, EPOCHS = 200, 4, 48, 2
# One user makes a third of the pairs, all of them of an item with itself: a rank that has reached him has one distinct
# item beside its negatives, and pairs that weigh nothing. The last users have too few events for a pair.
HISTORIES = [
    [7] * 120,
    *([int(item) for item in np.random.default_rng(user).integers(0, 150, 4 + user)] for user in range(24)),
    *([user] for user in range(5)),
]
NUM_PAIRS = sum(min(place, WINDOW) for history in HISTORIES for place in range(len(history)))
STEPS_PER_EPOCH = NUM_PAIRS // BATCH
REFUSED: dict[tuple[str, int], str] = {
    # (dataset, data shards): what both ranks say
    ("small", 2): "has 6 training pairs (pairs.window 4), fewer than training.batch_size (48): a batch_size of",
    ("uneven", 3): "2 ranks cannot share training.num_shards = 3",
    ("uneven", 1): "2 ranks cannot share training.num_shards = 1",
}


def config_of(root: Path, name: str, **training: Any) -> Config:
    return tiny_config(
        root,
        name,
        model={"heads": [{"name": "engagement"}]},
        training={"batch_size": BATCH, "num_shards": 2, "epochs": EPOCHS, "checkpoint_every": 500} | training,
    )


def run(rank: int, world_size: int, root: Path) -> None:
    """The work of one rank: a run to the end of its data, the same batches once more, and the runs that are refused."""
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    if world_size > 1:
        torch.set_num_threads(1)
        store = f"file://{root}/store-{world_size}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    with join_ranks("cpu"):
        config = config_of(root / "uneven", f"ranks-{world_size}")
        train(config)
        record_batches(config, rank, world_size, root / f"batches-{rank}-of-{world_size}.json")
        if world_size > 1:
            messages = []
            for name, num_shards in REFUSED:
                with pytest.raises(ValueError) as caught:  # noqa: PT011  the test below reads what it says
                    train(config_of(root / name, "refused", num_shards=num_shards))
                messages.append(str(caught.value))
            (root / f"messages-{rank}.json").write_text(json.dumps(messages))
    if world_size > 1:
        dist.destroy_process_group()


def record_batches(config: Config, rank: int, world_size: int, path: Path) -> None:
    """Epoch, items before and after padding, and pairs of every batch of this rank."""
    loader = pair_loader(open_dataset(config.dataset_dir), config, rank, world_size)
    padded = of_one_size(loader.iterate())
    batches = []
    for own, batch in zip(loader.iterate(), padded, strict=True):
        pairs = torch.stack([batch.item_index[batch.trigger], batch.item_index[batch.positive]], dim=1)
        batches.append((batch.epoch, len(own.item_index), len(batch.item_index), pairs.tolist()))
    path.write_text(json.dumps(batches))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ends")
    write_dataset(root / "uneven" / "dataset", HISTORIES, num_items=NUM_ITEMS, row_group_size=3)
    write_dataset(root / "small" / "dataset", [[1, 2, 3, 4], [5], [6]], num_items=NUM_ITEMS)
    on_two: Callable[[int, int, Path], None] = run
    mp.start_processes(on_two, args=(2, root), start_method="forkserver", nprocs=2)
    run(0, 1, root)
    return root


@pytest.fixture(scope="module")
def batches(root: Path) -> list[list[Any]]:
    """Of both ranks."""
    return [json.loads((root / f"batches-{rank}-of-2.json").read_text()) for rank in range(2)]


def test_ranks_whose_data_is_uneven_end_together(root: Path, batches: list[list[Any]]) -> None:
    config, alone = (config_of(root / "uneven", f"ranks-{world_size}") for world_size in (2, 1))
    last = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    assert last.summary["step"] == EPOCHS * STEPS_PER_EPOCH
    assert last.summary["world_size"] == 2
    sizes = np.array([[own for _, own, _, _ in of_rank] for of_rank in batches])
    assert (sizes.min(axis=0) < 0.7 * sizes.max(axis=0)).any(), "one rank has far fewer items than the other"
    padded = np.array([[padded for _, _, padded, _ in of_rank] for of_rank in batches])
    assert np.array_equal(padded, np.broadcast_to(sizes.max(axis=0), sizes.shape))
    # Steps in which all pairs of a rank weigh nothing do not change what the others learn.
    idle = [all(trigger == positive for trigger, positive in pairs) for _, _, _, pairs in chain(*batches)]
    assert any(idle)
    losses, expected = losses_of(config), losses_of(alone)
    assert list(losses) == list(expected) == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    for step, heads in expected.items():
        assert losses[step]["engagement"] == pytest.approx(heads["engagement"], rel=1e-4)


def test_a_second_epoch_is_as_full_as_the_first(root: Path, batches: list[list[Any]]) -> None:
    for of_rank in batches:
        assert [epoch for epoch, *_ in of_rank] == [0] * STEPS_PER_EPOCH + [1] * STEPS_PER_EPOCH
        assert all(len(pairs) == BATCH // 2 for *_, pairs in of_rank)
    expected = Counter(
        (history[earlier], history[later])
        for history in HISTORIES
        for later in range(len(history))
        for earlier in range(max(0, later - WINDOW), later)
    )
    orders = [
        [tuple(pair) for of_rank in batches for number, _, _, pairs in of_rank if number == epoch for pair in pairs]
        for epoch in range(EPOCHS)
    ]
    for order in orders:
        assert Counter(order) <= expected
        assert len(order) == STEPS_PER_EPOCH * BATCH > expected.total() - BATCH
    assert orders[0] != orders[1]
    losses = losses_of(config_of(root / "uneven", "ranks-2"))
    assert all(losses[step]["engagement"]["engagement"] > 0.0 for step in range(STEPS_PER_EPOCH + 1, len(losses) + 1))


def test_a_rank_that_would_be_empty_is_an_error_on_all_ranks(root: Path) -> None:
    said = [json.loads((root / f"messages-{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    for message, expected in zip(said[0], REFUSED.values(), strict=True):
        assert expected in message
    for dataset, _ in REFUSED:
        assert not (root / dataset / "refused").exists(), "refused before anything is written"
