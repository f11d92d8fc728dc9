"""The files of a preranker artifact, and what its manifest's summary records.

vectors.npy               [I, D + K] float32: every item
user_tower.safetensors    weights of the user tower
combination.safetensors   how the evidence about a candidate is weighed
popularity.npy            [I, 2] float32: logarithms of 1 + the item's events, and of 1 + its late ones
co-occurrence/, linear/    what goes with each item, see `neighbours`
tower/                    the item tower, for items that are newer than the artifact
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

VECTORS = Path("vectors.npy")
USER_TOWER = Path("user_tower.safetensors")
COMBINATION = Path("combination.safetensors")
POPULARITY = Path("popularity.npy")
COOCCURRENCE = Path("co-occurrence")
LINEAR = Path("linear")


class TaskSummary(BaseModel):
    """One task of the score.

    Attributes:
        name: of the task.
        label: number of its query among the labels, from 0; ``None``: the engagement itself.
        weight: of its probability in the score.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    label: int | None
    weight: float


class TaskQuality(BaseModel):
    """The quality of a task's probabilities on T2 (`quality.measure`).

    Attributes:
        auc: area under the ROC curve, over T2 items and uniform draws of the catalogue; None: only one class.
        normalized_entropy: cross-entropy over that of the mean; below 1 the model knows more than the mean.
        rate: share of the rows in which the task is fulfilled.
        engaged_auc: the same among T2 items alone, by the probability given the engagement; None for the engagement.
        engaged_normalized_entropy: likewise.
        engaged_rate: likewise.
    """

    model_config = ConfigDict(extra="forbid")

    auc: float | None
    normalized_entropy: float | None
    rate: float
    engaged_auc: float | None = None
    engaged_normalized_entropy: float | None = None
    engaged_rate: float | None = None


class PrerankerSummary(BaseModel):
    """The ``summary`` of a preranker manifest."""

    model_config = ConfigDict(extra="forbid")

    num_items: int
    dim: int
    temperature: float
    hidden: list[int]
    history_length: int
    prior: list[float]
    heads: list[str]  # whose embeddings are inputs of an item, in this order
    tasks: list[TaskSummary]
    quality: dict[str, TaskQuality]  # by task
    combination_hidden: int
    weights: dict[str, float]  # by kind of evidence: its standardised weight in the linear part of the combination
