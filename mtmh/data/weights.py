"""Weights of training pairs: semantic closeness (SIM) and inverse propensity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtmh.config import PropensityConfig, SimWeightConfig
from mtmh.data.arrays import Indices
from mtmh.data.item_table import IdColumn, ItemColumns

_CHUNK_ITEMS = 1 << 20
_MANY_EVENTS = 1 << 16  # of an item; few have as many


class PairWeights:
    """The weight of a pair: SIM boost times propensity weight, 0 for a pair of an item with itself."""

    def __init__(
        self, sim: SimWeightConfig, propensity: PropensityConfig | None, table: ItemColumns, has_content: bool
    ) -> None:
        """Checks that what the settings need is there.

        Args:
            sim: which pairs count more for being semantically close.
            propensity: how popular items count less; ``None``: they do not.
            table: the items.
            has_content: whether calls will have teacher embeddings.

        Raises:
            ValueError: ``pairs.sim`` names a feature that the dataset lacks, or content embeddings where there are
                none.
        """
        self._sim = sim
        if self._sim.feature is not None and self._sim.feature not in table.columns:
            raise ValueError(
                f"pairs.sim.feature {self._sim.feature!r}: not an id feature of the dataset, which has "
                f"{', '.join(table.columns)}"
            )
        if self._sim.kind == "content" and not has_content:
            raise ValueError("pairs.sim.kind = content compares teacher embeddings: give the loader content embeddings")
        self._propensity = None if propensity is None else PropensityWeights(table.train_count, propensity)

    def __call__(
        self, table: ItemColumns, items: Indices, trigger: Indices, candidate: Indices, content: Tensor
    ) -> Tensor:
        """Weights of pairs.

        Args:
            table: features of items.
            items: [U] distinct items, by their numbers there.
            trigger: [M] rows of ``items``.
            candidate: [M] rows of ``items``.
            content: [U, Dc] teacher embeddings of ``items``; Dc = 0: who has them weighs by them later.

        Returns:
            [M] float32.
        """
        weight = (trigger != candidate).astype(np.float32)
        if self._sim.feature is not None:
            shared = share_value(table.columns[self._sim.feature], items[trigger], items[candidate])
            weight[shared] *= self._sim.boost
        elif self._sim.kind == "content" and content.shape[1]:
            pairs = torch.from_numpy(trigger), torch.from_numpy(candidate)
            weight[cosine_at_least(content, *pairs, self._sim.threshold).numpy()] *= self._sim.boost
        if self._propensity is not None:
            weight *= self._propensity.of_pairs(table.train_count[items], trigger, candidate)
        return torch.from_numpy(weight)


class PropensityWeights:
    """Inverse propensity of triggers, candidates or both (related-video paper, off-policy correction, equation 7).

    ``w(i) = s / (a + count(i)^b)`` with ``count`` the item's training events. The scale ``s`` makes the mean of ``w``
    over training events 1: ``s = sum(count) / sum(count / (a + count^b))``. Triggers and candidates occur about as
    often as events, so the mean over training pairs is about 1; unlike a mean over a batch it does not depend on the
    batch or the number of ranks. ``both`` multiplies the two weights, each of mean 1: where popular items meet popular
    ones the mean of the product is below 1.
    """

    def __init__(self, train_count: npt.NDArray[np.int64], config: PropensityConfig) -> None:
        self._config = config
        self._scale = 1.0
        # Items with as many events weigh alike, so a catalogue of any size is a few distinct numbers.
        num_items, many = np.zeros(_MANY_EVENTS + 1, np.int64), []
        for start in range(0, len(train_count), _CHUNK_ITEMS):
            counts = train_count[start : start + _CHUNK_ITEMS]
            num_items += np.bincount(counts.clip(max=_MANY_EVENTS), minlength=len(num_items))
            many.append(counts[counts >= _MANY_EVENTS])
        few = 1 + np.flatnonzero(num_items[1:_MANY_EVENTS])
        most, of_most = np.unique(np.concatenate([few[:0], *many]), return_counts=True)
        events = np.concatenate([few, most]).astype(np.float64)
        if len(events):
            total = events * np.concatenate([num_items[few], of_most])
            self._scale = total.sum() / (total / (config.a + events**config.b)).sum()

    def __call__(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Weights [U] float32 of items with so many training events [U]."""
        counts = np.maximum(counts, 1).astype(np.float64)
        return (self._scale / (self._config.a + counts**self._config.b)).astype(np.float32)

    def of_pairs(self, counts: npt.NDArray[np.int64], trigger: Indices, candidate: Indices) -> npt.NDArray[np.float32]:
        """Weights of pairs.

        Args:
            counts: [U] training events of items.
            trigger: [M] rows of ``counts``.
            candidate: [M] rows of ``counts``.

        Returns:
            [M] float32.
        """
        of_item = self(counts)
        if self._config.count_of == "both":
            return of_item[trigger] * of_item[candidate]
        return of_item[trigger if self._config.count_of == "trigger" else candidate]


def share_value(column: IdColumn, first: Indices, second: Indices) -> npt.NDArray[np.bool_]:
    """True where two items have a value of an id feature in common; row 0 (unknown) is never shared.

    Args:
        column: the feature.
        first: [M] items.
        second: [M] items.

    Returns:
        [M] bool.
    """
    values_a, lengths_a = column.gather(first)
    values_b, lengths_b = column.gather(second)
    if column.offsets is None:
        same: npt.NDArray[np.bool_] = (values_a == values_b) & (values_a > 0)
        return same
    # Each value of the first item against all values of the second.
    pair = np.repeat(np.arange(len(first)), lengths_a)
    repeats = lengths_b[pair]
    starts_b = np.cumsum(lengths_b) - lengths_b
    ends = np.cumsum(repeats)
    against = np.repeat(starts_b[pair] - (ends - repeats), repeats) + np.arange(repeats.sum())
    left = np.repeat(values_a, repeats)
    shared = np.zeros(len(first), np.bool_)
    shared[np.repeat(pair, repeats)[(left == values_b[against]) & (left > 0)]] = True
    return shared


def cosine_at_least(content: Tensor, first: Tensor, second: Tensor, threshold: float) -> Tensor:
    """True where two items' embeddings have at least this cosine; items without content never do.

    Args:
        content: [U, Dc] rows of unit length, or zero: no content.
        first: [M] rows.
        second: [M] rows.
        threshold: least cosine.

    Returns:
        [M] bool.
    """
    content = content.float()
    cosines = torch.linalg.vecdot(content.index_select(0, first), content.index_select(0, second))
    result: Tensor = cosines >= threshold
    if threshold <= 0.0:  # only then would a row of zeros pass
        known = content.any(dim=1)
        result &= known[first] & known[second]
    return result
