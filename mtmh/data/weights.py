"""Weights of training pairs: semantic closeness (SIM) and inverse propensity."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtmh.config import PropensityConfig, SimWeightConfig
from mtmh.data.arrays import Indices
from mtmh.data.item_table import IdColumn, ItemTable


class PairWeights:
    """The weight of a pair: SIM boost times propensity weight, 0 for a pair of an item with itself."""

    def __init__(
        self, sim: SimWeightConfig, propensity: PropensityConfig | None, table: ItemTable, has_content: bool
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
        self._column: IdColumn | None = None
        if self._sim.feature is not None:
            if self._sim.feature not in table.columns:
                raise ValueError(
                    f"pairs.sim.feature {self._sim.feature!r}: not an id feature of the dataset, which has "
                    f"{', '.join(table.columns)}"
                )
            self._column = table.columns[self._sim.feature]
        if self._sim.kind == "content" and not has_content:
            raise ValueError("pairs.sim.kind = content compares teacher embeddings: give the loader content embeddings")
        self._propensity = None if propensity is None else PropensityWeights(table.train_count, propensity)

    def __call__(self, items: Indices, trigger: Indices, candidate: Indices, content: Tensor) -> Tensor:
        """Weights of pairs.

        Args:
            items: [U] distinct items.
            trigger: [M] rows of ``items``.
            candidate: [M] rows of ``items``.
            content: [U, Dc] teacher embeddings of ``items``.

        Returns:
            [M] float32.
        """
        weight = (trigger != candidate).astype(np.float32)
        if self._column is not None:
            weight[share_value(self._column, items[trigger], items[candidate])] *= self._sim.boost
        elif self._sim.kind == "content":
            weight[cosine_at_least(content, trigger, candidate, self._sim.threshold)] *= self._sim.boost
        if self._propensity is not None:
            weight *= self._propensity.of_pairs(items, trigger, candidate)
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
        self._train_count = train_count
        self._config = config
        self._scale = 1.0
        known = train_count[train_count > 0].astype(np.float64)
        if len(known):
            self._scale = known.sum() / (known / (config.a + known**config.b)).sum()

    def __call__(self, items: Indices) -> npt.NDArray[np.float32]:
        """Weights [U] float32 of items [U]."""
        counts = np.maximum(self._train_count[items], 1).astype(np.float64)
        return (self._scale / (self._config.a + counts**self._config.b)).astype(np.float32)

    def of_pairs(self, items: Indices, trigger: Indices, candidate: Indices) -> npt.NDArray[np.float32]:
        """Weights of pairs.

        Args:
            items: [U] items.
            trigger: [M] rows of ``items``.
            candidate: [M] rows of ``items``.

        Returns:
            [M] float32.
        """
        of_item = self(items)
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


def cosine_at_least(content: Tensor, first: Indices, second: Indices, threshold: float) -> npt.NDArray[np.bool_]:
    """True where two items' embeddings have at least this cosine; items without content never do.

    Args:
        content: [U, Dc] rows of unit length, or zero: no content.
        first: [M] rows.
        second: [M] rows.
        threshold: least cosine.

    Returns:
        [M] bool.
    """
    a = content.index_select(0, torch.from_numpy(first))
    b = content.index_select(0, torch.from_numpy(second))
    cosines = np.vecdot(a.numpy(), b.numpy())
    result: npt.NDArray[np.bool_] = cosines >= threshold
    if threshold <= 0.0:  # only then would a row of zeros pass
        known = content.any(dim=1).numpy()
        result &= known[first] & known[second]
    return result
