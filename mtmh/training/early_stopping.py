"""The length of training, chosen on the end of T1: measure at intervals, stop when nothing gets better."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtmh.artifacts import write_atomically
from mtmh.distributed.ranks import Ranks, on_first

VALIDATION_CURVE = "validation.json"
SCORE = "score"  # the measured figure that decides
_GAIN = 0.01  # less is not worth more training, and within what another sample of users would change


@dataclass(frozen=True)
class Point:
    """The figures measured after some steps.

    Attributes:
        step: finished steps.
        epoch: the same in passes over the pairs.
        measured: figures by name, ``score`` among them.
    """

    step: int
    epoch: float
    measured: Mapping[str, float]


class EarlyStopping:
    """Decides when a run on the validation view has trained long enough, and which of its steps was best.

    The curve stands in a file beside the checkpoints; a run that was killed goes on with the points up to the step that
    it resumes from, so it decides as one that was not killed.

    Args:
        measure: the figures of the model as it is; all ranks call it together and get the same.
        folder: of the checkpoints.
        steps_per_epoch: of the run.
        patience: measurements without one that is better by a hundredth that end the run.
        ranks: this process among the others.
        show: prints what was measured.
        start_step: finished steps; later points are dropped.
    """

    def __init__(
        self,
        measure: Callable[[], Mapping[str, float]],
        folder: Path,
        steps_per_epoch: int,
        patience: int,
        ranks: Ranks,
        show: Callable[[str], None],
        start_step: int = 0,
    ) -> None:
        self._measure = measure
        self._path = folder / VALIDATION_CURVE
        self._steps_per_epoch = steps_per_epoch
        self._patience = patience
        self._ranks = ranks
        self._show = show
        self.curve = [point for point in read_validation_curve(folder) if point.step <= start_step]

    def __call__(self, step: int) -> bool:
        """Measures after ``step`` steps; True: long enough."""
        self.curve = [point for point in self.curve if point.step < step]
        self.curve.append(Point(step, step / self._steps_per_epoch, self._measure()))
        text = json.dumps([asdict(point) for point in self.curve], indent=1)
        on_first(self._ranks, lambda: write_atomically(self._path, text))
        figures = "  ".join(f"{name} {value:.4f}" for name, value in self.curve[-1].measured.items())
        self._show(f"validation after {step} steps, {self.curve[-1].epoch:.2f} epochs: {figures}")
        return self.is_over

    @property
    def is_over(self) -> bool:
        """True once it has trained long enough."""
        reached, since = 0.0, 0
        for point in self.curve:
            better = point.measured[SCORE] > (1.0 + _GAIN) * reached
            reached, since = (point.measured[SCORE], 0) if better else (reached, since + 1)
        return since >= self._patience

    def latest(self) -> Mapping[str, float]:
        """The figures measured last; nothing before the first look."""
        return self.curve[-1].measured if self.curve else {}

    @property
    def best(self) -> Point:
        """The earliest point that no other is better than by a hundredth.

        The highest of scores that differ by chance comes late by chance, and the second run would pay for it.
        """
        highest = max(point.measured[SCORE] for point in self.curve)
        return next(point for point in self.curve if highest <= (1.0 + _GAIN) * point.measured[SCORE])


def read_validation_curve(folder: Path) -> list[Point]:
    """The points of a run, none if it has none yet."""
    path = folder / VALIDATION_CURVE
    if not path.is_file():
        return []
    points: list[dict[str, Any]] = json.loads(path.read_text())
    return [Point(**point) for point in points]
