"""The recall/relevance curve over alpha: written by an evaluation, read for the explorer page."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtmh.artifacts import MANIFEST, open_artifact
from mtmh.index.versions import current_version

log = logging.getLogger("mtmh.serve")

CURVE_FILE = Path("curve.json")  # in an evaluation artifact


class CurvePoint(BaseModel):
    """One alpha of the evaluation; intervals are 95 % ones over users, None where the evaluation kept none.

    Attributes:
        alpha: percent from the engagement head.
        recall: mean.
        match: mean topic match; None: no topics.
        recall_interval: of the recall.
        match_interval: of the match.
    """

    model_config = ConfigDict(extra="forbid")

    alpha: float
    recall: float
    match: float | None
    recall_interval: tuple[float, float] | None = None
    match_interval: tuple[float, float] | None = None


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


class MeasuredCurve(Curve):
    """Recall against topic match over alpha, as the evaluation measured it."""

    same_index: Annotated[bool, Field(description="Whether it was measured on the index version that answers now.")]


def read_curve(evaluation_dir: Path, index_dir: Path) -> MeasuredCurve | None:
    """The curve of an evaluation; None without an evaluation of several alphas.

    An evaluation that cannot be read, or is being replaced, is a warning: the page opens without it.
    """
    try:
        return _curve(evaluation_dir, index_dir)
    except (ValueError, OSError) as error:
        log.warning("no curve of the evaluation: %s", error)
        return None


def _curve(folder: Path, index_dir: Path) -> MeasuredCurve | None:
    if not (folder / MANIFEST).is_file():
        return None
    evaluation = open_artifact(folder, "evaluation")
    if str(CURVE_FILE) not in evaluation.manifest.files:
        return None
    try:
        curve = Curve.model_validate_json((folder / CURVE_FILE).read_text())
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"{folder / CURVE_FILE}: {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        ) from None
    answers_now = open_artifact(current_version(index_dir), "index").manifest.digest
    return MeasuredCurve(**curve.model_dump(), same_index=evaluation.manifest.inputs.get("index") == answers_now)
