"""The view of a dataset whose histories end earlier."""

from pathlib import Path

import numpy as np
import pytest
from synthetic_dataset import NUM_ITEMS, make_config, pair_loader, random_histories, user_index_of, write_dataset

from mtmh.config import ValidationConfig
from mtmh.data.dataset import Dataset
from mtmh.data.histories import Histories
from mtmh.data.validation import ValidationDataset

HISTORIES = random_histories(40)
ROW_OF = {int(user): row for row, user in enumerate(user_index_of(len(HISTORIES)))}
POPULARITY = ("log_train_count", "train_age")


def times_of(histories: list[list[int]]) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [np.sort(rng.integers(0, 1000, len(history))).tolist() for history in histories]


def kept_lists(view: Dataset) -> list[list[int]]:
    reader = view.history_reader()
    groups = [reader.read(group) for group in range(reader.num_groups)]
    return [users.users(row, row + 1).items.tolist() for users in groups for row in range(len(users.offsets) - 1)]


def test_a_time_cut_keeps_what_lies_before_one_instant(tmp_path: Path) -> None:
    times = times_of(HISTORIES)
    dataset = write_dataset(tmp_path / "dataset", HISTORIES, timestamps=times, test={0: [3]})
    view = ValidationDataset(dataset, ValidationConfig(fraction=0.2), seed=0)
    cut = view.summary.test_begin
    assert cut is not None
    expected = [
        [item for item, at in zip(history, when, strict=True) if at < cut]
        for history, when in zip(HISTORIES, times, strict=True)
    ]
    assert kept_lists(view) == expected
    assert view.history_reader().lengths.tolist() == [len(history) for history in expected]
    late = sum(at >= cut for when in times for at in when)
    assert late == pytest.approx(0.2 * sum(map(len, times)), rel=0.1)
    users = view.evaluation_users(1000, seed=1)
    with_both = [row for row, history in enumerate(HISTORIES) if 0 < len(expected[row]) < len(history)]
    assert sorted(ROW_OF[user] for user in users.user_index.tolist()) == with_both
    for place, user in enumerate(users.user_index.tolist()):
        row = ROW_OF[user]
        rest = HISTORIES[row][len(expected[row]) :]
        assert users.histories.users(place, place + 1).items.tolist() == expected[row]
        assert users.test.users(place, place + 1).items.tolist() == list(dict.fromkeys(rest))


def test_a_user_cut_holds_back_the_end_of_some_histories(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", HISTORIES, test={0: [3]})
    view = ValidationDataset(dataset, ValidationConfig(fraction=0.25, num_users=12), seed=0)
    cut = [row for row, history in enumerate(HISTORIES) if view.kept[row] < len(history)]
    assert len(cut) == 12
    for row, (kept, history) in enumerate(zip(kept_lists(view), HISTORIES, strict=True)):
        held_back = min(len(history) - 2, max(1, int(np.floor(0.25 * len(history) + 0.5)))) if row in cut else 0
        assert kept == history[: len(history) - held_back]
    assert view.evaluation_users(5, seed=1).user_index.tolist() != view.evaluation_users(5, seed=2).user_index.tolist()


@pytest.mark.parametrize("clock", [True, False])
def test_nothing_that_is_held_back_reaches_counts_features_or_batches(tmp_path: Path, clock: bool) -> None:
    """Two datasets that differ only in what is held back look the same through their views."""
    histories = [[*history, 0, 1] for history in HISTORIES]
    others = [[*history, 48, 49] for history in HISTORIES]
    times = [[*when, 2000, 2001] for when in times_of(HISTORIES)] if clock else None
    settings = ValidationConfig(fraction=0.1, num_users=1000)
    if clock:
        settings = ValidationConfig(fraction=2 * len(HISTORIES) / sum(map(len, histories)))
    views = []
    for name, lists in (("a", histories), ("b", others)):
        dataset = write_dataset(
            tmp_path / name, lists, timestamps=times, test={0: [3]}, float_features=POPULARITY if clock else ("p", "q")
        )
        views.append(ValidationDataset(dataset, settings, seed=0))
    a, b = (view.item_table for view in views)
    kept = [item for history in kept_lists(views[0]) for item in history]
    assert a.train_count.tolist() == np.bincount(kept, minlength=NUM_ITEMS).tolist()
    if clock:
        assert kept_lists(views[0]) == HISTORIES
        seen = a.train_count > 0
        logs = np.log1p(a.train_count[seen])
        assert a.float_features[seen, 0] == pytest.approx((logs - logs.mean()) / logs.std(), abs=1e-5)
        assert (a.float_features[~seen] == 0).all()
        assert np.array_equal(a.float_features, b.float_features)
        assert np.array_equal(a.train_count, b.train_count)
        assert (a.columns["item_id"].values[~seen] == 0).all()
        config = make_config(tmp_path)
        first, second = (next(pair_loader(view, config).iterate()) for view in views)
        assert first.log_q.tolist() == second.log_q.tolist()
        assert first.item_index.tolist() == second.item_index.tolist()
        assert first.dense.tolist() == second.dense.tolist()
        assert views[0].items(["train_count"]) == views[1].items(["train_count"])


@pytest.mark.parametrize(("num_events", "share"), [(100, 0.3), (10_000, 0.2), (20_000, 0.1), (10**9, 0.1), (None, 0.1)])
def test_of_little_data_a_larger_share_is_held_back(num_events: int | None, share: float) -> None:
    assert ValidationConfig().share(num_events) == share
    assert ValidationConfig(fraction=0.15).share(num_events) == 0.15


def test_too_few_events_to_hold_some_back_is_an_error(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", [[1, 2], [3, 4]])
    with pytest.raises(ValueError, match="too few training events"):
        ValidationDataset(dataset, ValidationConfig(), seed=0)


def test_first_engagements_take_all_kinds_and_the_largest_value() -> None:
    histories = Histories(
        np.array([5, 3, 5, 3], np.int32),
        np.array([0, 3, 3, 4]),
        np.array([1, 2, 4, 8], np.int32),
        np.array([0.5, np.nan, 0.7, 0.1], np.float32),
    )
    first = histories.first_engagements()
    assert first.items.tolist() == [5, 3, 3]
    assert first.offsets.tolist() == [0, 2, 2, 3]
    assert first.events is not None
    assert first.values is not None
    assert first.events.tolist() == [5, 2, 8]
    assert first.values.tolist() == pytest.approx([0.7, float("nan"), 0.1], nan_ok=True)
