"""Uniform negatives, and the probability of each item under the mix of in-batch and uniform negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mtmh.data.randomness import Purpose, generator


class UniformNegatives:
    """Draws items with replacement, all known items alike.

    Known are the items with events in the training period: a fresh item first shows in the test period, and drawing
    it would tell the model that it exists.
    """

    def __init__(self, train_count: npt.NDArray[np.int64], num_draws: int, seed: int) -> None:
        """Lists the known items.

        Args:
            train_count: [I] training events of each item.
            num_draws: draws of one global step.
            seed: the run's.
        """
        known = np.flatnonzero(train_count > 0)
        self._known: npt.NDArray[np.int32] | npt.NDArray[np.int64] = known
        if len(train_count) < 2**31:
            self._known = known.astype(np.int32)
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

    def __init__(self, train_count: npt.NDArray[np.int64], *, in_batch: int, uniform: int) -> None:
        """Takes the training events of each item [I], and how many negatives of each kind a step has."""
        draws = in_batch + uniform
        self._train_count = train_count
        self._per_event = in_batch / draws / int(train_count.sum())
        self._floor = uniform / draws / int(np.count_nonzero(train_count))

    def __call__(self, items: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        """Log probabilities [U] float32 of items [U] that occur in training."""
        # An item in a batch has events; the clip keeps log finite should the counts disagree with the histories.
        counts = np.maximum(self._train_count[items], 1)
        log_q: npt.NDArray[np.float32] = np.log(counts * self._per_event + self._floor).astype(np.float32)
        return log_q
