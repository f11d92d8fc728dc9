"""What plugs into a run: state that travels with the checkpoint, numbers that are shown with every window."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config, write_inputs
from torch import Tensor

from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.data.loader import PairLoader
from mtmh.distributed.optimizers import build_optimizer
from mtmh.distributed.ranks import join_ranks
from mtmh.distributed.sharding import shard
from mtmh.training.checkpoint import Checkpoints
from mtmh.training.model_builder import build_model
from mtmh.training.progress import METRICS, TrainingLog
from mtmh.training.task import TrainTask


class Counter:
    """Counts in one tensor."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = torch.tensor(seen)
        self.is_restored = False

    def state(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def restored(self) -> None:
        self.is_restored = True


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_inputs(tmp_path)
    return tiny_config(tmp_path, model={"heads": [{"name": "engagement"}]})


def test_a_part_is_saved_and_restored_by_name(config: Config) -> None:
    dataset = open_dataset(config.dataset_dir)
    features, inputs = dataset.summary.features, {"dataset": dataset.artifact}
    with join_ranks("cpu") as ranks:
        model = build_model(config.model, features, ranks.device, tables=torch.device("meta"))
        sharded, _ = shard(TrainTask(model, config.loss), config, ranks)
        optimizer = build_optimizer(sharded, config.training)

        checkpoints = Checkpoints(config, features, inputs, ranks)
        checkpoints.add("counter", Counter([3, 1, 4]))
        saved = checkpoints.save(2, 0, sharded, optimizer)

        again = Checkpoints(config, features, inputs, ranks)
        counter = Counter([0, 0, 0])
        again.add("counter", counter)
        assert again.restore(saved, sharded, optimizer) == 2
        assert counter.seen.tolist() == [3, 1, 4]
        assert counter.is_restored

        without = Checkpoints(config, features, inputs, ranks)
        with pytest.raises(ValueError, match=r"in the files only: counter\.seen"):
            without.restore(saved, sharded, optimizer)
        without.add("other", Counter([0]))
        with pytest.raises(ValueError, match=r"not in the files: other\.seen"):
            without.restore(saved, sharded, optimizer)


def test_a_gauge_is_written_with_every_window(config: Config) -> None:
    dataset = open_dataset(config.dataset_dir)
    with join_ranks("cpu") as ranks:
        loader = PairLoader(dataset, config)
        model = build_model(config.model, dataset.summary.features, ranks.device, tables=torch.device("meta"))
        sharded, _ = shard(TrainTask(model, config.loss), config, ranks)
        optimizer = build_optimizer(sharded, config.training)
        optimizer.zero_grad()
        sharded(next(loader.iterate()))[0].sum().backward()
        calls = iter((0.25, 0.5))
        with TrainingLog(config, dataset, loader, optimizer, ranks, start_step=0) as log:
            log.add("tables", lambda: {"evicted": next(calls)})
            for step in (1, 2):
                log.record(step, torch.zeros(3, 1), report=True)
    lines = (config.model_dir("checkpoints") / METRICS).read_text().splitlines()
    assert [json.loads(line)["tables"] for line in lines] == [{"evicted": 0.25}, {"evicted": 0.5}]
