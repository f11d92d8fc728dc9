"""The loader: the same global steps on any number of ranks and from any start, each pair once an epoch."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_dataset import NUM_ITEMS, make_config, pair_loader, random_histories, write_dataset

from mtmh.artifacts import write_artifact
from mtmh.data.batch import PairBatch
from mtmh.data.content_store import EMBEDDINGS, ContentEmbeddings, open_content
from mtmh.data.dataset import Dataset
from mtmh.data.pairs import Pairs, WindowPairs
from mtmh.data.stream import PairPlan, PairStream

HISTORY_LISTS = random_histories(40)
EPOCH_STEPS = 58


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "dataset", HISTORY_LISTS)


def make_content(path: Path, dataset: Dataset) -> ContentEmbeddings:
    vectors = np.random.default_rng(2).standard_normal((NUM_ITEMS, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with write_artifact(path, "content", config={}, inputs={"dataset": dataset.artifact}) as writer:
        np.save(writer.folder / EMBEDDINGS, vectors.astype(np.float32))
    return open_content(path, dataset)


def pairs_of(batch: PairBatch) -> list[tuple[int, int, float, tuple[int, ...]]]:
    """Trigger, candidate, weight and masked history of each pair, as catalogue indices."""
    item = batch.item_index
    histories = np.split(batch.history_values.numpy(), batch.history_offsets.numpy()[1:-1])
    return list(
        zip(
            item[batch.trigger].tolist(),
            item[batch.positive].tolist(),
            batch.weight.tolist(),
            [tuple(histories[row].tolist()) for row in batch.history_row.tolist()],
            strict=True,
        )
    )


def naive_pairs(histories: list[list[int]], window: int) -> Counter[tuple[int, int]]:
    return Counter(
        (history[earlier], history[later])
        for history in histories
        for later in range(len(history))
        for earlier in range(max(0, later - window), later)
    )


def pair_counts(batches: Iterator[PairBatch]) -> Counter[tuple[int, int]]:
    return Counter((trigger, candidate) for batch in batches for trigger, candidate, *_ in pairs_of(batch))


def assert_equal(a: PairBatch, b: PairBatch) -> None:
    for field in dataclasses.fields(PairBatch):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name == "sparse":
            assert left.keys() == right.keys()
            assert torch.equal(left.values(), right.values())
            assert torch.equal(left.lengths(), right.lengths())
        elif isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype
            assert torch.equal(left, right), field.name
        else:
            assert left == right


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_global_step_does_not_depend_on_the_number_of_ranks(
    dataset: Dataset, tmp_path: Path, world_size: int
) -> None:
    content = make_content(tmp_path / "content", dataset)
    config = make_config(
        tmp_path,
        pairs={"sim": {"kind": "content", "threshold": 0.2}},
        loss={"propensity": {}},
        model={"id_dropout": 0.3},
    )
    alone = pair_loader(dataset, config, content=content).iterate()
    ranks = [pair_loader(dataset, config, rank, world_size, content).iterate() for rank in range(world_size)]
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert list(chain.from_iterable(map(pairs_of, shares))) == pairs_of(whole)
        uniform = [share.item_index[share.uniform].tolist() for share in shares]
        assert list(chain.from_iterable(uniform)) == whole.item_index[whole.uniform].tolist()
        assert len({len(share.trigger) for share in shares}) == 1
        rows = whole.sparse["item_id"].values()
        for share in shares:
            place = torch.searchsorted(whole.item_index, share.item_index)
            assert torch.equal(rows[place], share.sparse["item_id"].values())  # the same items drop out
            assert torch.equal(whole.log_q[place], share.log_q)
            assert torch.equal(whole.content[place], share.content)


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("shuffle_pairs", [1, 20, 10_000])
def test_an_epoch_holds_each_pair_once_but_for_the_remainder(
    dataset: Dataset, tmp_path: Path, direction: str, shuffle_pairs: int
) -> None:
    config = make_config(tmp_path, pairs={"direction": direction}, training={"shuffle_pairs": shuffle_pairs})
    loader = pair_loader(dataset, config)
    expected = naive_pairs(HISTORY_LISTS, 4)
    if direction == "both":
        expected += Counter({(candidate, trigger): count for (trigger, candidate), count in expected.items()})
    assert loader.num_pairs == expected.total()
    assert loader.steps_per_epoch == expected.total() // 24
    assert loader.num_steps == 2 * loader.steps_per_epoch
    for epoch in range(2):
        found = pair_counts(islice(loader.iterate(epoch * loader.steps_per_epoch), loader.steps_per_epoch))
        assert found.total() == loader.steps_per_epoch * 24
        assert found <= expected


def test_epochs_and_seeds_are_shuffled_differently(dataset: Dataset, tmp_path: Path) -> None:
    def order(seed: int, epoch: int) -> list[Any]:
        config = make_config(tmp_path).model_copy(update={"seed": seed})
        batches = islice(pair_loader(dataset, config).iterate(epoch * EPOCH_STEPS), EPOCH_STEPS)
        return [pair for batch in batches for pair in pairs_of(batch)]

    reference = order(0, 0)
    assert order(0, 0) == reference
    assert order(0, 1) != reference
    assert order(1, 0) != reference


def test_pairs_of_a_block_are_mixed(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[2 * user, 2 * user + 1] * 10 for user in range(25)])
    config = make_config(tmp_path, training={"num_shards": 1, "batch_size": 20, "shuffle_pairs": 400})
    first = next(pair_loader(dataset, config).iterate())
    assert len(set(first.history_row.tolist())) > 3  # in file order a batch holds at most two users


@pytest.mark.parametrize("start", [1, 7, EPOCH_STEPS - 1, EPOCH_STEPS, EPOCH_STEPS + 13, 2 * EPOCH_STEPS - 1])
def test_a_resumed_run_goes_on_bit_for_bit(dataset: Dataset, tmp_path: Path, start: int) -> None:
    content = make_content(tmp_path / "content", dataset)
    loader = pair_loader(dataset, make_config(tmp_path, model={"id_dropout": 0.2}), 1, 2, content)
    uninterrupted = list(islice(loader.iterate(), start, None))
    resumed = list(loader.batches(start))
    assert len(resumed) == len(uninterrupted) == 2 * EPOCH_STEPS - start
    for expected, found in zip(uninterrupted, resumed, strict=True):
        assert_equal(expected, found)
    assert [batch.step for batch in resumed] == list(range(start, 2 * EPOCH_STEPS))
    assert [batch.epoch for batch in resumed] == [step // EPOCH_STEPS for step in range(start, 2 * EPOCH_STEPS)]


def test_steps_may_be_read_in_any_order(dataset: Dataset, tmp_path: Path) -> None:
    config = make_config(tmp_path)
    pairs = WindowPairs(config.pairs.window, config.pairs.direction)
    plan = PairPlan(dataset.history_reader(), pairs, config.training, config.seed)

    def read(stream: PairStream[Pairs], position: int) -> list[list[int]]:
        epoch, step = divmod(position, plan.steps_per_epoch)
        return [array.tolist() for array in stream.read(epoch, step).pairs[:2]]

    ascending, jumping = (PairStream(dataset.history_reader(cached), plan, pairs, range(1, 4)) for cached in (4, 1))
    expected = [read(ascending, position) for position in range(2 * plan.steps_per_epoch)]
    order = np.random.default_rng(0).permutation(len(expected)).tolist()
    assert [read(jumping, position) for position in order] == [expected[position] for position in order]


def test_a_finished_run_has_no_batches_and_max_steps_cuts_it(dataset: Dataset, tmp_path: Path) -> None:
    loader = pair_loader(dataset, make_config(tmp_path, training={"max_steps": 5}))
    assert loader.num_steps == 5
    assert [batch.step for batch in loader.batches()] == [0, 1, 2, 3, 4]
    assert list(loader.batches(5)) == []


def test_shapes_dtypes_and_item_inputs(dataset: Dataset, tmp_path: Path) -> None:
    content = make_content(tmp_path / "content", dataset)
    for batch in pair_loader(dataset, make_config(tmp_path), content=content).iterate():
        items = batch.item_index.numpy()
        assert (np.diff(items) > 0).all()
        used = torch.cat([batch.trigger, batch.positive, batch.uniform])
        assert set(used.tolist()) == set(range(len(items)))
        assert batch.trigger.shape == batch.positive.shape == batch.weight.shape == batch.history_row.shape == (24,)
        assert batch.uniform.shape == (10,)
        sparse, dense = dataset.item_table.gather(items)
        assert torch.equal(batch.sparse.values(), sparse.values())
        assert torch.equal(batch.sparse.lengths(), sparse.lengths())
        assert torch.equal(batch.dense, dense)
        assert torch.equal(batch.content, content.gather(items))
        for name in (
            "item_index",
            "trigger",
            "positive",
            "uniform",
            "history_values",
            "history_offsets",
            "history_row",
        ):
            assert getattr(batch, name).dtype == torch.int64, name
        for name in ("dense", "weight", "log_q", "content"):
            assert getattr(batch, name).dtype == torch.float32, name
        assert torch.equal(batch.weight == 0, batch.trigger == batch.positive)
        assert (dataset.item_table.train_count[items] > 0).all()


def test_masks_hold_the_last_items_of_each_pairs_user(tmp_path: Path) -> None:
    # Users share no item, so a pair tells its user.
    histories = [[10 * user + item for item in range(1 + 2 * user)] for user in range(5)]
    dataset = write_dataset(tmp_path / "dataset", histories, row_group_size=2)
    config = make_config(tmp_path, training={"batch_size": 12, "num_shards": 3})
    seen = set()
    for batch in pair_loader(dataset, config).iterate():
        assert len(batch.history_offsets) - 1 <= 12
        for trigger, candidate, _, history in pairs_of(batch):
            assert trigger // 10 == candidate // 10
            assert list(history) == histories[trigger // 10][-5:]
            seen.add(trigger // 10)
    assert seen == {1, 2, 3, 4}


def test_no_masks_no_teacher_no_log_q(dataset: Dataset, tmp_path: Path) -> None:
    config = make_config(tmp_path, loss={"mask_history": False, "log_q": "none", "num_uniform_negatives": 0})
    batch = next(pair_loader(dataset, config).iterate())
    assert batch.history_values.tolist() == []
    assert batch.history_offsets.tolist() == [0, 0]
    assert batch.history_row.tolist() == [0] * 24
    assert batch.uniform.tolist() == []
    assert batch.content.shape == (len(batch.item_index), 0)
    assert not batch.log_q.any()


def test_dropout_hides_the_share_asked_for_and_nothing_else(dataset: Dataset, tmp_path: Path) -> None:
    plain = pair_loader(dataset, make_config(tmp_path)).iterate()
    dropped = pair_loader(dataset, make_config(tmp_path, model={"id_dropout": 0.25})).iterate()
    hidden, total = 0, 0
    patterns = set()
    for a, b in zip(plain, dropped, strict=True):
        before, after = a.sparse["item_id"].values(), b.sparse["item_id"].values()
        gone = after == 0
        assert torch.equal(after[~gone], before[~gone])
        assert torch.equal(a.sparse["brand"].values(), b.sparse["brand"].values())
        patterns.add(tuple(a.item_index[gone].tolist()))
        hidden += int(gone.sum())
        total += len(gone)
    assert hidden / total == pytest.approx(0.25, abs=0.03)
    assert len(patterns) > 100  # another choice each step


def test_users_too_short_for_a_pair_and_empty_row_groups(tmp_path: Path) -> None:
    histories = [[], [1], *HISTORY_LISTS[:6], [], [2], [3], [], [4], [5], [], [], *HISTORY_LISTS[6:12]]
    dataset = write_dataset(tmp_path / "dataset", histories, row_group_size=2)
    config = make_config(tmp_path, training={"epochs": 5, "num_shards": 2, "batch_size": 8})
    loader = pair_loader(dataset, config)
    expected = naive_pairs(histories, 4)
    assert loader.num_pairs == expected.total()
    for epoch in range(5):
        found = pair_counts(islice(loader.iterate(epoch * loader.steps_per_epoch), loader.steps_per_epoch))
        assert found <= expected
        assert expected.total() - found.total() < 8


def test_too_few_pairs_says_what_would_fit(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[1, 2, 3, 4], [5, 6], [7]])
    with pytest.raises(ValueError, match=r"has 7 training pairs .*batch_size of at most 6 would fit"):
        pair_loader(dataset, make_config(tmp_path))
    small = make_config(tmp_path, training={"batch_size": 6})
    assert pair_loader(dataset, small).steps_per_epoch == 1
    none = write_dataset(tmp_path / "none", [[1], [2]])
    with pytest.raises(ValueError, match=r"has 0 training pairs"):
        pair_loader(none, small)


def test_ranks_must_divide_the_shards(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"4 ranks cannot share training.num_shards = 6 .* one of \[1, 2, 3, 6\] ranks"
    ):
        pair_loader(dataset, make_config(tmp_path), rank=0, world_size=4)


def test_counts_that_know_no_item_are_refused(tmp_path: Path) -> None:
    none = {Path("item_table/train_count.npy"): np.zeros(NUM_ITEMS, np.int64)}
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS, changes=none)
    with pytest.raises(ValueError, match="no item has training events"):
        pair_loader(dataset, make_config(tmp_path))


def test_a_damaged_row_group_stops_the_consumer(tmp_path: Path) -> None:
    lengths = np.array([len(history) for history in HISTORY_LISTS], np.int32)
    lengths[[21, 22]] = lengths[[22, 21]]
    dataset = write_dataset(tmp_path / "dataset", HISTORY_LISTS, changes={Path("histories.lengths.npy"): lengths})
    batches = pair_loader(dataset, make_config(tmp_path)).batches()
    with pytest.raises(ValueError, match=r"histories.parquet: row group 4: lengths"):
        list(batches)
    assert not [thread for thread in threading.enumerate() if thread.name == "mtmh-prefetch"]


def test_loaders_of_two_consumers_do_not_disturb_each_other(dataset: Dataset, tmp_path: Path) -> None:
    loader = pair_loader(dataset, make_config(tmp_path))
    for a, b in zip(loader.batches(), loader.batches(), strict=True):
        assert_equal(a, b)
