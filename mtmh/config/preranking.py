"""Settings of the learned preranker."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from mtmh.config.base import Decides, NonNegative, Positive, Settings
from mtmh.config.training import TrainingConfig


class TaskConfig(Settings):
    """Something that a user may do with an item, to be predicted.

    ``event``: kinds of events that count; none: every kind. ``min_value``: the least value that counts. A task without
    either is the engagement itself. ``weight``: of the task's probability in the score.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    event: list[str] = []
    min_value: float | None = None
    weight: Annotated[NonNegative, Decides("preranker")] = 1.0

    @property
    def is_engagement(self) -> bool:
        """True if every event of the history counts."""
        return not self.event and self.min_value is None


class PrerankerTrainingConfig(TrainingConfig):
    """One training run of the preranker. ``batch_size`` counts examples of the global batch; ``auto`` is as there."""

    epochs: Annotated[Positive, Decides()] = 4
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.1
    dense_learning_rate: Annotated[float, Field(gt=0.0)] = 0.005
    warmup_steps: Annotated[int, Field(ge=0)] = 20


class PrerankerConfig(Settings):
    """A multi-task user-to-item model (``mtmh train-preranker``), trained on T1 by the settings of ``training``.

    An example is an event of a history: the user is the ``history_length`` items before it, the trigger one of the last
    ``window`` of those, drawn anew in every epoch. ``history_dropout``: examples whose history is the trigger alone, as
    for a request without a user. ``head_embeddings``: the frozen embeddings of the heads are inputs of an item.
    """

    tasks: list[TaskConfig] = [TaskConfig(name="engagement")]
    history_length: Positive = 50
    window: Positive = 10
    history_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    head_embeddings: bool = True
    # Of an item by the users' histories, which are kept for serving.
    neighbours: Annotated[Positive, Decides("preranker")] = 300
    # With the most users, which the linear model is about; it inverts a matrix of them.
    linear_items: Annotated[Positive, Decides("preranker")] = 6000
    # Width of the network that combines evidence; 0: a sum.
    combination_hidden: Annotated[int, Field(ge=0), Decides("preranker")] = 16
    embedding_dim: Annotated[int, Field(ge=4, multiple_of=4)] = 32
    dense_hidden: list[Positive] = [32]
    dense_dim: Positive = 16
    hidden: list[Positive] = [128]
    dim: Positive = 64  # of an item's direction and of a query's
    temperature: Annotated[float, Field(gt=0.0)] = 0.1
    id_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    in_batch_negatives: bool = True
    num_uniform_negatives: Annotated[int, Field(ge=0)] = 512  # of the global batch
    check_users: Annotated[Positive, Decides("preranker")] = 2000  # whose T2 the tasks are measured on
    check_negatives: Annotated[Positive, Decides("preranker")] = 50  # uniform draws for each T2 item
    training: PrerankerTrainingConfig = PrerankerTrainingConfig()

    @field_validator("tasks")
    @classmethod
    def _tasks_differ(cls, tasks: list[TaskConfig]) -> list[TaskConfig]:
        names = [task.name for task in tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"preranker.tasks needs at least one task and distinct names, got {names}")
        if not any(task.weight for task in tasks):
            raise ValueError("preranker.tasks: no task has a weight, so all scores would be 0")
        return tasks

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if not self.in_batch_negatives and self.num_uniform_negatives == 0:
            raise ValueError("preranker: no negatives: turn on in_batch_negatives or set num_uniform_negatives")
        if self.training.batch_size == 1 and self.num_uniform_negatives == 0:
            raise ValueError(
                "preranker: no negatives: with a training.batch_size of 1 there are no other examples to take them"
                " from; raise it or set num_uniform_negatives"
            )
        return self
