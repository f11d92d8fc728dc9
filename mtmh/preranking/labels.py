"""Labels of events for the tasks of a recipe, from the kinds and values of a dataset."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mtmh.config import TaskConfig
from mtmh.data.histories import Histories
from mtmh.data.schema import DatasetSummary


class Labels:
    """The tasks that not every engagement fulfils.

    Attributes:
        names: of those tasks, in the order of the recipe.
    """

    def __init__(self, tasks: list[TaskConfig], summary: DatasetSummary) -> None:
        """Looks up the kinds of events.

        Raises:
            ValueError: a task names a kind of event, or asks for a value, that the dataset does not have.
        """
        self._tasks = [task for task in tasks if not task.is_engagement]
        self.names = [task.name for task in self._tasks]
        self._masks = []
        for task in self._tasks:
            unknown = [kind for kind in task.event if kind not in summary.event_kinds]
            if unknown:
                known = ", ".join(summary.event_kinds) or "no kinds of events"
                raise ValueError(
                    f"preranker.tasks: {task.name}: no event {', '.join(unknown)} in the training period of the "
                    f"dataset, which has {known} (source tables: data.columns.event; then mtmh prepare)"
                )
            if task.min_value is not None and not summary.has_values:
                raise ValueError(
                    f"preranker.tasks: {task.name}: min_value needs values of events, which the dataset does not have "
                    "(source tables: data.columns.value; then mtmh prepare)"
                )
            self._masks.append(sum(1 << summary.event_kinds.index(kind) for kind in task.event))

    def __call__(self, events: Histories) -> npt.NDArray[np.float32]:
        """[H, L] 1 where an event fulfils a task, else 0."""
        labels = np.ones((len(events.items), len(self._tasks)), np.float32)
        for place, (task, mask) in enumerate(zip(self._tasks, self._masks, strict=True)):
            if task.event:
                assert events.events is not None
                labels[:, place] *= (events.events & np.int32(mask)) != 0
            if task.min_value is not None:
                assert events.values is not None
                labels[:, place] *= events.values >= np.float32(task.min_value)  # NaN: no
        return labels
