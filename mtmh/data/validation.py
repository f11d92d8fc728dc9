"""A dataset whose histories end earlier: what is chosen while training is chosen on the end of T1, never on T2.

Where the dataset is cut at one instant, so is the view, at an earlier one; where each user's last events are held back,
so are the last of those that remain. The files are those of the dataset: histories are read up to their kept lengths.
"""

from __future__ import annotations

from copy import copy
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtmh.config import ValidationConfig
from mtmh.data.dataset import Dataset, EvaluationUsers
from mtmh.data.histories import Histories, HistoryReader, concatenate_histories, flat_numbers
from mtmh.data.item_table import IdColumn, ItemTable
from mtmh.data.parquet import open_parquet, read_column
from mtmh.data.randomness import Purpose, generator
from mtmh.data.schema import HISTORIES, ITEM_ID, TRAIN_AGE, TRAIN_COUNT, FloatScale
from mtmh.data.uniform_negatives import KnownItems, find_known_items

_SAMPLED_TIMES = 1 << 22  # bounds the memory of finding the cut
_LITTLE = 0.05  # of T1's events
_NEVER = np.iinfo(np.int64).max


class ValidationDataset(Dataset):
    """T1 of a dataset without its end, which takes the place of T2.

    Counts and popularity features are those of the events that are kept; an item that has none passes as unseen. The
    rest of the item table is shared.

    Attributes:
        artifact: of the dataset.
        summary: of the dataset, but for the figures that the cut changes.
        kept: [num_users] int32, how much of each history is kept, in file order.
    """

    def __init__(self, dataset: Dataset, settings: ValidationConfig, seed: int) -> None:
        """Makes the cut; reads the histories once.

        Args:
            dataset: whose T1 is cut.
            settings: how much is held back, and of how many users where each user's end is.
            seed: decides which users these are.

        Raises:
            ValueError: nothing would be left to train on or to validate with.
        """
        super().__init__(dataset.artifact, dataset.summary)
        self._whole = dataset
        self._lengths = dataset.history_reader().lengths
        instant = None
        if dataset.summary.cutoff is None:
            self.kept = _user_cut(self._lengths, settings, seed)
        else:
            instant = self._instant(settings.share(dataset.summary.num_train_events))
            self.kept = self._time_cut(instant)
        self._count_kept(instant)
        held_back = int((self._lengths - self.kept).sum(dtype=np.int64))
        if held_back == 0 or not self._train_count.any() or not ((self.kept > 0) & (self.kept < self._lengths)).any():
            raise ValueError(
                f"{self.artifact.path}: too few training events to hold some back, by which the length of training and"
                " the weights of evidence are chosen; set training.epochs to a number and retrieval.sorter to"
                " head-score"
            )
        self.summary = dataset.summary.model_copy(
            update={
                "num_train_events": int(self._train_count.sum()),
                "num_fresh_items": int((self._train_count == 0).sum()),
                "num_users": int((self.kept > 0).sum()),
                "num_test_users": len(self._test_rows),
                "num_test_events": held_back,
                "cutoff": None if instant is None else float(instant),
                "train_end": instant,
                "test_begin": instant,
            }
        )

    @property
    def holds_back_little(self) -> bool:
        """True if a model without the events held back is as good as one with them: below a twentieth of T1."""
        return self.summary.num_test_events < _LITTLE * (self.summary.num_test_events + self.summary.num_train_events)

    @property
    def items_there(self) -> npt.NDArray[np.bool_]:
        """[I] the items that could be engaged with in the time held back.

        After an instant, one without any event in T1 may be newer than all of that. The ends of users are of all times.
        """
        if self.summary.cutoff is None:
            return np.ones(self.num_items, bool)
        return self._whole.item_table.train_count > 0

    @cached_property
    def known_items(self) -> KnownItems:
        """[K] the items with kept events, ascending."""
        return find_known_items(self._train_count)

    @cached_property
    def item_table(self) -> ItemTable:
        """The model's inputs of all items, as the kept events make them."""
        table = copy(self._whole.item_table)
        seen = self._train_count > 0
        rows = table.columns[ITEM_ID].values
        table.columns = table.columns | {ITEM_ID: IdColumn(np.where(seen, rows, 0).astype(rows.dtype), None)}
        table.train_count = self._train_count
        derived = {
            TRAIN_COUNT: np.where(seen, np.log1p(self._train_count), np.nan),
            TRAIN_AGE: np.where(seen, self._now - self._first_seen.astype(np.float64), np.nan),
        }
        names = table.schema.float_features
        if any(name in derived for name in names):
            table.float_features = np.array(table.float_features)
            for column, name in enumerate(names):
                if name in derived:
                    scale = FloatScale.measured(name, derived[name][seen])
                    table.float_features[:, column] = scale.standardise(derived[name])
        return table

    def items(self, columns: list[str] | None = None) -> pa.Table:  # type: ignore[override]
        """As of the dataset, with the counts and first instants of the kept events."""
        table = super().items(columns)
        for name, values in (("train_count", self._train_count), ("first_seen", self._first_seen)):
            if name in table.column_names:
                place = table.column_names.index(name)
                table = table.set_column(place, name, pa.array(values, mask=self._train_count == 0))
        return table

    def history_reader(self, cached_groups: int = 1, *, labels: bool = False, numbered: bool = False) -> HistoryReader:
        """A reader of what is kept of the histories."""
        assert not numbered, "features ride along with whole histories"
        return HistoryReader(self.artifact.path, self.num_items, cached_groups, labels, kept=self.kept)

    def evaluation_users(self, num_users: int, seed: int, *, labels: bool = False) -> EvaluationUsers:
        """A seeded sample of the users with kept and held-back events; ``test`` is their held-back items."""
        rows = self._test_rows
        rows = np.sort(rows[generator(Purpose.EVALUATION_USERS, seed).permutation(len(rows))[:num_users]])
        reader = HistoryReader(self.artifact.path, self.num_items, 1, labels)
        file, path = open_parquet(self.artifact.path / HISTORIES), self.artifact.path / HISTORIES
        past: list[Histories] = []
        future: list[Histories] = []
        keys: list[npt.NDArray[np.int64]] = []
        group_of_row = np.searchsorted(reader.group_starts, rows, side="right") - 1
        for group in np.unique(group_of_row).tolist():
            chosen = rows[group_of_row == group]
            inside = chosen - reader.group_starts[group]
            whole = reader.read(group)
            kept, lengths = self.kept[chosen].astype(np.int64), self._lengths[chosen].astype(np.int64)
            past.append(whole.before(whole.offsets[inside] + kept, kept))
            future.append(whole.before(whole.offsets[inside + 1], lengths - kept).first_engagements())
            keys.append(read_column(file, path, group, "user_index").to_numpy()[inside])
        users = np.concatenate(keys)
        order = np.argsort(users)
        return EvaluationUsers(
            users[order], concatenate_histories(past).select(order), concatenate_histories(future).select(order)
        )

    @cached_property
    def _test_rows(self) -> npt.NDArray[np.int64]:
        return np.flatnonzero((self.kept > 0) & (self.kept < self._lengths))

    def _instant(self, fraction: float) -> int:
        """The first instant of the events held back: about ``fraction`` of T1 lies there or later."""
        file, path = open_parquet(self.artifact.path / HISTORIES), self.artifact.path / HISTORIES
        stride = 1 + int(self._lengths.sum(dtype=np.int64)) // _SAMPLED_TIMES
        groups = range(file.metadata.num_row_groups)
        times = [flat_numbers(read_column(file, path, group, "timestamps"), path)[::stride] for group in groups]
        return int(np.quantile(np.concatenate([np.zeros(0, np.int64), *times]), 1.0 - fraction, method="higher"))

    def _time_cut(self, instant: int) -> npt.NDArray[np.int32]:
        file, path = open_parquet(self.artifact.path / HISTORIES), self.artifact.path / HISTORIES
        reader = self._whole.history_reader()
        kept = np.zeros(len(self._lengths), np.int32)
        for group, (first, end) in enumerate(zip(reader.group_starts[:-1], reader.group_starts[1:], strict=True)):
            before = flat_numbers(read_column(file, path, group, "timestamps"), path) < instant
            rows = np.repeat(np.arange(end - first), self._lengths[first:end])
            kept[first:end] = np.bincount(rows[before], minlength=end - first)
        return kept

    def _count_kept(self, instant: int | None) -> None:
        """Events of each item and the instant of its first, in what is kept."""
        file, path = open_parquet(self.artifact.path / HISTORIES), self.artifact.path / HISTORIES
        clock = TRAIN_AGE in self.summary.features.float_features
        self._train_count = np.zeros(self.num_items, np.int64)
        self._first_seen = np.full(self.num_items, _NEVER)
        reader = self._whole.history_reader()
        for group in range(reader.num_groups):
            items = reader.read(group).items
            lengths = self._lengths[reader.group_starts[group] : reader.group_starts[group + 1]]
            kept = self.kept[reader.group_starts[group] : reader.group_starts[group + 1]]
            position = np.arange(len(items)) - np.repeat(np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
            trained_on = position < np.repeat(kept, lengths)
            self._train_count += np.bincount(items[trained_on], minlength=self.num_items)
            if clock:
                times = flat_numbers(read_column(file, path, group, "timestamps"), path)
                np.minimum.at(self._first_seen, items[trained_on], times[trained_on])
        seen = self._train_count > 0
        self._now = instant if instant is not None else int(self._first_seen[seen].max(initial=0))


def _user_cut(lengths: npt.NDArray[np.int32], settings: ValidationConfig, seed: int) -> npt.NDArray[np.int32]:
    """Holds back the end of the histories of some users; those of fewer than three events stay whole."""
    kept = np.array(lengths)
    long = np.flatnonzero(lengths >= 3)
    users = long[generator(Purpose.VALIDATION_USERS, seed).permutation(len(long))[: settings.num_users]]
    # As prepare rounds; at least two events stay, which make a pair.
    share = np.floor(lengths[users] * settings.share() + 0.5).astype(np.int32)
    kept[users] -= np.minimum(lengths[users] - 2, np.maximum(1, share))
    return kept
