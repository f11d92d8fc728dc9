"""Recall, NDCG, hit rate, topic match, coverage and popularity, each with a bootstrap over users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from mtmh.data.arrays import Indices

Values = npt.NDArray[np.float64]
Ratio = tuple[Values, Values]  # of each user what is summed over users, above and below

POPULAR_SHARE = 0.01  # of the catalogue, by training count
_CELLS_AN_ANSWER = 16  # of a table of all users and items: where it has no more, looking up in it beats a search


class Estimate(BaseModel):
    """A mean over users with its bootstrap standard error and 95 % percentile interval; shares from 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    standard_error: float
    low: float
    high: float


class Bootstrap:
    """Resamples users with replacement, the same draws for every metric.

    The user is the unit because answers of one user depend on each other; triggers or pairs as units would make the
    interval too narrow.
    """

    def __init__(self, num_users: int, *, num_resamples: int = 1000, seed: int = 0) -> None:
        draws = np.random.default_rng(seed).integers(0, num_users, size=(num_resamples, num_users))
        keys = draws + np.arange(num_resamples)[:, None] * num_users
        counts = np.bincount(keys.ravel(), minlength=num_resamples * num_users)
        self._counts = counts.reshape(num_resamples, num_users).astype(np.float64)

    def ratio(self, numerators: Values, denominators: Values) -> Estimate | None:
        """Estimates ``sum(numerators) / sum(denominators)`` over users.

        Args:
            numerators: [U] float64.
            denominators: [U] float64, non-negative.

        Returns:
            the estimate; None if the denominators sum to zero (nothing to measure).
        """
        return self.ratios([(numerators, denominators)])[0]

    def ratios(self, parts: Sequence[Ratio]) -> list[Estimate | None]:
        """Estimates of several ratios as ``ratio`` makes each, in one product with the draws."""
        resampled = self._resampled(parts)
        return [
            None if below.sum() == 0 else _estimate(above.sum() / below.sum(), drawn)
            for (above, below), drawn in zip(parts, resampled, strict=True)
        ]

    def difference(self, minuend: Ratio, subtrahend: Ratio) -> Estimate | None:
        """Estimates the difference of two ratios over the same users, paired by user; arguments as ``ratio``."""
        if minuend[1].sum() == 0 or subtrahend[1].sum() == 0:
            return None
        value = minuend[0].sum() / minuend[1].sum() - subtrahend[0].sum() / subtrahend[1].sum()
        first, second = self._resampled([minuend, subtrahend])
        return _estimate(value, first - second)

    def mean(self, values: Values) -> Estimate:
        """Estimates the mean of ``values`` [U] over users."""
        estimate = self.ratio(values, np.ones(len(values)))
        assert estimate is not None
        return estimate

    def _resampled(self, parts: Sequence[Ratio]) -> Values:
        """[parts, resamples] the ratios in every resample, nan where nothing can be measured."""
        totals = np.stack([values for part in parts for values in part]) @ self._counts.T
        above, below = totals[::2], totals[1::2]
        ratios = np.full(above.shape, np.nan)
        np.divide(above, below, out=ratios, where=below > 0)
        return ratios


def _estimate(value: float, resampled: Values) -> Estimate:
    known = resampled[~np.isnan(resampled)]
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(value=float(value), standard_error=float(np.std(known, ddof=1)), low=float(low), high=float(high))


def hits_in(lists: Indices, truth_items: Indices, truth_offsets: Indices) -> npt.NDArray[np.bool_]:
    """Places of the lists where a user's future item stands.

    Args:
        lists: [U, N] item indices without duplicates in a row, best first, -1: none.
        truth_items: [G] item indices, users one after another, distinct within a user.
        truth_offsets: [U + 1].

    Returns:
        [U, N] bool.
    """
    num_users = len(lists)
    if not len(truth_items):
        return np.zeros(lists.shape, dtype=bool)
    width = int(max(lists.max(initial=0), truth_items.max(initial=0))) + 2  # the last column is for item -1
    rows = np.arange(num_users)[:, None]
    owners = np.repeat(np.arange(num_users), np.diff(truth_offsets))
    if num_users * width <= _CELLS_AN_ANSWER * lists.size:
        is_truth = np.zeros((num_users, width), dtype=bool)
        is_truth[owners, truth_items] = True
        return np.asarray(is_truth[rows, lists])
    truth_keys = np.sort(owners * width + truth_items)
    keys = rows * width + lists
    places = np.minimum(np.searchsorted(truth_keys, keys), len(truth_keys) - 1)
    return np.asarray((truth_keys[places] == keys) & (lists >= 0))


def recall_at(hits: npt.NDArray[np.bool_], sizes: Indices, ks: Sequence[int]) -> Values:
    """Share of a user's future items among the first k of the list.

    Args:
        hits: [U, N] of `hits_in`.
        sizes: [U] future items of each user, at least one.
        ks: cut-offs.

    Returns:
        [U, len(ks)] float64.
    """
    assert (sizes > 0).all(), "users without ground truth must not be sampled"
    return np.stack([hits[:, :k].sum(axis=1) / sizes for k in ks], axis=1)


def ndcg_at(hits: npt.NDArray[np.bool_], sizes: Indices, ks: Sequence[int]) -> Values:
    """Normalised discounted cumulative gain: a hit at place r (from 1) gains ``1 / log2(r + 1)``.

    The ideal list that it is divided by has all future items, as many as there is room for, at its top. Arguments and
    result as `recall_at`.
    """
    gains = 1.0 / np.log2(np.arange(max(hits.shape[1], max(ks))) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(gains)])
    return np.stack([hits[:, :k] @ gains[: min(k, hits.shape[1])] / ideal[np.minimum(sizes, k)] for k in ks], axis=1)


def topic_sets(labels: Sequence[str | None], separator: str) -> npt.NDArray[np.int64]:
    """Sets of topics as bits, -1: none.

    Args:
        labels: [I] the topics of each item in one text.
        separator: that stands between them.

    Raises:
        ValueError: more than 62 topics, which a set has no room for.
    """
    sets = [label.split(separator) if label else [] for label in labels]
    bits = {topic: 1 << place for place, topic in enumerate(sorted({topic for of_item in sets for topic in of_item}))}
    if len(bits) > 62:
        raise ValueError(f"topics: expected at most 62 between separators {separator!r}, got {len(bits)}")
    return np.array([sum(bits[topic] for topic in set(of_item)) or -1 for of_item in sets], np.int64)


def topic_matches(
    triggers: Indices, items: Indices, topics: Indices, *, sets: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts the <trigger, candidate> pairs of equal topic.

    Args:
        triggers: [P] item indices.
        items: [P, K] the trigger's candidates, -1: none.
        topics: [I] topic codes, -1: the item has none and its pairs do not count.
        sets: ``topics`` are of `topic_sets`; a pair matches if it has any topic in common.

    Returns:
        matching pairs [P] and counted pairs [P].
    """
    own, theirs = topics[triggers], np.append(topics, -1)[items]
    known = theirs >= 0
    counted = np.where(own >= 0, np.count_nonzero(known, axis=1), 0)
    matching = known & (own[:, None] & theirs != 0) if sets else theirs == own[:, None]
    return np.where(own >= 0, np.count_nonzero(matching, axis=1), 0), counted


def coverage(lists: Indices, num_items: int) -> float:
    """Share of the catalogue that is in any list. ``lists``: [U, N], -1: none."""
    recommended = np.zeros(num_items, dtype=bool)
    recommended[lists[lists >= 0]] = True
    return float(recommended.mean())


def popular_items(train_count: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """[I] bool: the most popular 1 % of the catalogue (at least one item) by training count, ties to lower indices."""
    num_popular = max(1, round(POPULAR_SHARE * len(train_count)))
    popular = np.zeros(len(train_count), dtype=bool)
    popular[np.argsort(-train_count, kind="stable")[:num_popular]] = True
    return popular


def popularity_bands(train_count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[I] where an item stands by training count among those that have any, ties to lower indices.

    Returns:
        0: the least popular tenth; 1: between; 2: the most popular tenth; -1: no training event.
    """
    known = np.flatnonzero(train_count > 0)
    rank = np.empty(len(known), np.int64)
    rank[np.argsort(train_count[known], kind="stable")] = np.arange(len(known))
    bands = np.full(len(train_count), -1)
    bands[known] = np.searchsorted([0.1 * len(known), 0.9 * len(known)], rank, side="right")
    return bands


def marked_counts(lists: Indices, marked: npt.NDArray[np.bool_]) -> tuple[Values, Values]:
    """Recommendations of each user that are in the marked set, and all of them.

    Args:
        lists: [U, N], -1: none.
        marked: [I] bool.

    Returns:
        two [U] float64 arrays.
    """
    filled = lists >= 0
    return (filled & marked[lists]).sum(axis=1).astype(np.float64), filled.sum(axis=1).astype(np.float64)
