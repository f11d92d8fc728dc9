"""Means over seeds, with intervals over users and seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict

from mtmh.evaluation.metrics import Estimate

_NORMAL = 1.96  # a 95 % interval


class Interval(BaseModel):
    """A mean over seeds and half of its 95 % interval.

    The variance is that of the mean over users (bootstrap), which any number of seeds leaves as it is because all seeds
    are asked about the same users, plus that of the mean over seeds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    half: float
    num_seeds: int

    @classmethod
    def of(cls, estimates: Sequence[Estimate | None]) -> Self | None:
        """Of one figure under each seed; None: nothing was measured."""
        measured = [estimate for estimate in estimates if estimate is not None]
        if not measured:
            return None
        values = [estimate.value for estimate in measured]
        over_users = statistics.mean(estimate.standard_error**2 for estimate in measured)
        over_seeds = statistics.variance(values) / len(values) if len(values) > 1 else 0.0
        half = _NORMAL * math.sqrt(over_users + over_seeds)
        return cls(value=statistics.mean(values), half=half, num_seeds=len(values))

    def __str__(self) -> str:
        """In percent: ``12.34 ±0.45``; without the half where there is none, as of one seed's coverage."""
        return f"{100 * self.value:.2f}" + (f" ±{100 * self.half:.2f}" if self.half else "")


def cell(estimates: Sequence[Estimate | None]) -> str:
    """``12.34 ±0.45``, in percent; an en dash: nothing was measured."""
    interval = Interval.of(estimates)
    return "–" if interval is None else str(interval)
