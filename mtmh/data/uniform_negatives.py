"""Uniform negatives, and the probability of each item under the mix of in-batch and uniform negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mtmh.data.arrays import Indices, narrowed
from mtmh.data.randomness import Purpose, generator


def known_items(train_count: npt.NDArray[np.int64]) -> Indices:
    """The items with training events [K], ascending."""
    return narrowed(np.flatnonzero(train_count > 0), len(train_count))


class UniformNegatives:
    """Draws items with replacement, all known items alike.

    Known are the items with events in the training period: a fresh item first shows in the test period, and drawing
    it would tell the model that it exists.
    """

    def __init__(self, known: Indices, num_draws: int, seed: int) -> None:
        """Takes what draws follow from.

        Args:
            known: [K] items with training events, ascending (`known_items`).
            num_draws: draws of one global step.
            seed: the run's.
        """
        self._known = known
        self._num_draws = num_draws
        self._seed = seed

    def draw(self, epoch: int, step: int, rank: int, world_size: int) -> npt.NDArray[np.integer[Any]]:
        """A rank's share of the draws of one global step.

        The draws are those of the step; rank ``r`` of ``W`` takes ``r * N // W`` to ``(r + 1) * N // W - 1``, so shares
        differ by at most one draw and together are the same for any ``W``.

        Returns:
            item indices.
        """
        draws = generator(Purpose.UNIFORM_NEGATIVES, self._seed, epoch, step).integers(
            0, len(self._known), self._num_draws
        )
        share = draws[rank * self._num_draws // world_size : (rank + 1) * self._num_draws // world_size]
        return self._known[share]


class NegativeLogProbability:
    """Log probability that one negative, drawn from the whole mix, is a given item.

    With ``B`` in-batch and ``N`` uniform negatives a step: ``q(j) = B / (B + N) * p(j) + N / (B + N) / K`` for the
    ``K`` items with training events; ``B = 0`` without in-batch negatives. ``p(j)``, the share of pairs with candidate
    ``j``, is approximated by the share of training events with item ``j``. Close for long histories; in short ones
    the first ``window`` items are candidates of fewer pairs than the later ones, which event counts ignore.
    """

    def __init__(self, *, num_events: int, num_known: int, in_batch: int, uniform: int) -> None:
        """Takes the training events and the items that have some, and how many negatives of each kind a step has."""
        draws = in_batch + uniform
        self._per_event = in_batch / draws / num_events
        self._floor = uniform / draws / num_known

    def __call__(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Log probabilities [U] float32 of items with so many training events [U]."""
        # An item in a batch has events; the clip keeps log finite should the counts disagree with the histories.
        counts = np.maximum(counts, 1)
        log_q: npt.NDArray[np.float32] = np.log(counts * self._per_event + self._floor).astype(np.float32)
        return log_q
