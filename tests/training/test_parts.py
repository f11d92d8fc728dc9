"""Plugs of a run: state that travels with the checkpoint, numbers that are shown with every window."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config, write_inputs
from torch import Tensor

from mtmh.config import Config, decisive
from mtmh.data.dataset import open_dataset
from mtmh.distributed.optimizers import build_optimizer
from mtmh.distributed.ranks import join_ranks
from mtmh.distributed.sharding import shard
from mtmh.training.checkpoint import Checkpoints, RunRecord, training_state
from mtmh.training.model_builder import build_model
from mtmh.training.progress import STEP_METRICS, LossNames, RunSize, TrainingLog
from mtmh.training.task import TrainTask, items_per_step


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
    features, root = dataset.summary.features, config.model_dir("checkpoints")
    record = RunRecord.of_dataset(
        config.model_dump(mode="json"), decisive(config, "checkpoint"), dataset, {"dataset": dataset.artifact}
    )
    with join_ranks("cpu") as ranks:
        model = build_model(config.model, features, ranks.device, tables=torch.device("meta"))
        sharded, _ = shard(
            TrainTask(model, config.loss),
            config.sharding,
            ranks,
            items_per_step=items_per_step(config.training, config.loss),
            training=config.training,
            seed=config.seed,
        )
        trained = partial(training_state, sharded, build_optimizer(sharded, config.training))

        checkpoints = Checkpoints(root, record, ranks)
        checkpoints.add("counter", Counter([3, 1, 4]))
        saved = checkpoints.save(2, trained())

        again = Checkpoints(root, record, ranks)
        counter = Counter([0, 0, 0])
        again.add("counter", counter)
        assert again.restore(saved, trained()) == 2
        assert counter.seen.tolist() == [3, 1, 4]
        assert counter.is_restored

        without = Checkpoints(root, record, ranks)
        with pytest.raises(ValueError, match=r"in the files only: counter\.seen"):
            without.restore(saved, trained())
        without.add("other", Counter([0]))
        with pytest.raises(ValueError, match=r"not in the files: other\.seen"):
            without.restore(saved, trained())


@pytest.mark.parametrize("at_most", [True, False])
def test_only_a_run_of_known_length_says_how_long_it_takes(
    at_most: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = LossNames(("engagement",), ("head",), ((1.0,),))
    size = RunSize(18_800, 470, 8, at_most=at_most)
    with (
        join_ranks("cpu") as ranks,
        TrainingLog(tmp_path, size, names, lambda _: [], ranks, log_every=1, start_step=0) as log,
    ):
        log.record(1, torch.zeros(1, 1), report=False)
    shown = capsys.readouterr().out
    assert "step 1" in shown
    assert ("18800" in shown, "eta" in shown) == ((False, False) if at_most else (True, True))


def test_a_gauge_is_written_with_every_window(tmp_path: Path) -> None:
    names = LossNames(("engagement",), ("head",), ((1.0,),))
    calls = iter((0.25, 0.5))
    with (
        join_ranks("cpu") as ranks,
        TrainingLog(tmp_path, RunSize(2, 2, 8), names, lambda _: [], ranks, log_every=5, start_step=0) as log,
    ):
        log.add("tables", lambda: {"evicted": next(calls)})
        for step in (1, 2):
            log.record(step, torch.zeros(1, 1), report=True)
    lines = (tmp_path / STEP_METRICS).read_text().splitlines()
    assert [json.loads(line)["tables"] for line in lines] == [{"evicted": 0.25}, {"evicted": 0.5}]
