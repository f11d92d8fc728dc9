"""Reads the recall/relevance curve of the evaluation, for the explorer page."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from mtmh.artifacts import MANIFEST, open_artifact
from mtmh.index.versions import current_version
from mtmh.retrieval.curve import CURVE_FILE, Curve
from mtmh.serving.api import MeasuredCurve

log = logging.getLogger("mtmh.serve")


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
