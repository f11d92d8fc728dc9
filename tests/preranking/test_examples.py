"""Examples: what a user is comes from before the event, from T1 alone, and does not depend on the ranks."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny_preranker import tiny_config, write_embeddings, write_inputs

from mtmh.config import Config
from mtmh.data.dataset import open_dataset
from mtmh.data.schema import HISTORIES, TEST
from mtmh.preranking.examples import ExampleBatch, ExampleLoader
from mtmh.preranking.inputs import open_inputs
from mtmh.preranking.labels import Labels
from mtmh.preranking.model_builder import priors


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    write_inputs(root)
    write_embeddings(tiny_config(root))
    return root


def loader_of(config: Config, rank: int = 0, world_size: int = 1) -> ExampleLoader:
    dataset = open_dataset(config.dataset_dir)
    labels = Labels(config.preranker.tasks, dataset.summary)
    inputs, _ = open_inputs(dataset, None)
    return ExampleLoader(dataset, config.preranker, inputs, labels, config.seed, rank, world_size)


def examples(batch: ExampleBatch) -> list[tuple[int, int, tuple[int, ...], tuple[float, ...]]]:
    """(candidate, trigger, history, labels) in catalogue indices."""
    item = batch.item_index.tolist()
    offsets = batch.history_offsets.tolist()
    return [
        (
            item[batch.positive[row]],
            item[batch.trigger[row]],
            tuple(item[at] for at in batch.history[offsets[row] : offsets[row + 1]].tolist()),
            tuple(batch.labels[row].tolist()),
        )
        for row in range(len(batch.positive))
    ]


def naive_examples(config: Config) -> dict[tuple[int, tuple[int, ...], tuple[float, ...]], set[int]]:
    """Every event after a user's first: (candidate, history, labels) -> triggers that it may have."""
    dataset = open_dataset(config.dataset_dir)
    like = dataset.summary.event_kinds.index("like")
    found: dict[tuple[int, tuple[int, ...], tuple[float, ...]], set[int]] = {}
    for row in pq.read_table(dataset.artifact.path / HISTORIES).to_pylist():
        items = row["items"]
        for place in range(1, len(items)):
            labels = (
                float(row["events"][place] >> like & 1),
                float(np.float32(row["values"][place]) >= np.float32(0.6)),
            )
            history = tuple(items[max(0, place - 8) : place])
            found.setdefault((items[place], history, labels), set()).update(items[max(0, place - 3) : place])
    return found


def test_an_epoch_holds_every_event_once_with_what_came_before_it(root: Path) -> None:
    config = tiny_config(root, history_dropout=0.0)
    loader = loader_of(config)
    allowed = naive_examples(config)
    seen = 0
    for batch in loader.iterate():
        if batch.epoch:
            break
        for candidate, trigger, history, labels in examples(batch):
            assert trigger in allowed[candidate, history, labels]
            seen += 1
    assert seen == loader.steps_per_epoch * 48
    assert loader.num_examples - seen < 48
    assert loader.num_examples == sum(
        len(items) - 1 for items in pq.read_table(root / "dataset" / HISTORIES)["items"].to_pylist()
    )


def test_some_histories_are_the_trigger_alone(root: Path) -> None:
    batches = islice(loader_of(tiny_config(root, history_dropout=0.5)).iterate(), 20)
    found = [example for batch in batches for example in examples(batch)]
    alone = [history == (trigger,) for _, trigger, history, _ in found]
    assert 0.45 < np.mean(alone) < 0.65


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(root: Path, world_size: int) -> None:
    config = tiny_config(root)
    whole = loader_of(config).iterate(3)
    parts = [loader_of(config, rank, world_size).iterate(3) for rank in range(world_size)]
    for _ in range(4):
        batch, shares = next(whole), [next(part) for part in parts]
        assert examples(batch) == [example for share in shares for example in examples(share)]
        uniform = [share.item_index[share.uniform] for share in shares]
        assert torch.equal(batch.item_index[batch.uniform], torch.cat(uniform))
        sparse = dict(zip(batch.item_index.tolist(), batch.content, strict=True))
        for share in shares:
            for item, frozen in zip(share.item_index.tolist(), share.content, strict=True):
                assert torch.equal(sparse[item], frozen)


def test_nothing_of_the_test_period_reaches_an_example(root: Path, tmp_path: Path) -> None:
    config = tiny_config(root)
    shutil.copytree(root / "dataset", tmp_path / "dataset")
    test = pq.read_table(tmp_path / "dataset" / TEST)
    (tmp_path / "dataset" / TEST).write_bytes(b"x" * (tmp_path / "dataset" / TEST).stat().st_size)
    blind = config.model_copy(update={"paths": config.paths.model_copy(update={"dataset": tmp_path / "dataset"})})
    dataset, without = open_dataset(config.dataset_dir), open_dataset(blind.dataset_dir)
    assert len(test)
    for batch, other in zip(loader_of(config).iterate(), loader_of(blind).iterate(), strict=True):
        assert examples(batch) == examples(other)
        assert torch.equal(batch.log_q, other.log_q)
    labels = Labels(config.preranker.tasks, dataset.summary)
    assert priors(dataset, labels) == priors(without, labels)


def test_priors_are_the_rates_of_the_training_period(root: Path) -> None:
    config = tiny_config(root)
    dataset = open_dataset(config.dataset_dir)
    engagement, like, _ = priors(dataset, Labels(config.preranker.tasks, dataset.summary))
    assert np.exp(engagement) == pytest.approx(1.0 / np.count_nonzero(dataset.item_table.train_count))
    bit = dataset.summary.event_kinds.index("like")
    masks = np.concatenate([np.array(m) for m in pq.read_table(root / "dataset" / HISTORIES)["events"].to_pylist()])
    assert 1.0 / (1.0 + np.exp(-like)) == pytest.approx((masks >> bit & 1).mean(), rel=0.05)


def test_tasks_that_the_data_cannot_answer_are_refused(root: Path) -> None:
    summary = open_dataset(root / "dataset").summary
    tasks = tiny_config(root, tasks=[{"name": "buy", "event": ["buy"]}]).preranker.tasks
    with pytest.raises(ValueError, match=r"buy: no event buy in the training period.*has click, like"):
        Labels(tasks, summary)
    tasks = tiny_config(root, tasks=[{"name": "liked", "min_value": 4.0}]).preranker.tasks
    with pytest.raises(ValueError, match="liked: min_value needs values of events"):
        Labels(tasks, summary.model_copy(update={"has_values": False}))
