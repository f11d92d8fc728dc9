"""The recall/relevance curve over alpha: written by an evaluation, drawn by the explorer page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

CURVE_FILE = Path("curve.json")  # in an evaluation artifact


class CurvePoint(BaseModel):
    """One alpha of the evaluation."""

    model_config = ConfigDict(extra="forbid")

    alpha: float
    recall: float
    match: float | None


class Curve(BaseModel):
    """The figures of an evaluation for every alpha.

    Attributes:
        recall_at: the cut-off of ``recall``.
        topic: which topic ``match`` is about.
        points: by alpha; at least two.
    """

    model_config = ConfigDict(extra="forbid")

    recall_at: int
    topic: Literal["topic_l1", "topic_l2"]
    points: list[CurvePoint]
