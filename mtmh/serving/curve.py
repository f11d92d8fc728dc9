"""The recall/relevance curve of the evaluation, as the explorer page draws it."""

from __future__ import annotations

import logging

from mtmh.artifacts import MANIFEST, open_artifact
from mtmh.config import Config
from mtmh.evaluation.results import load_evaluation
from mtmh.index.versions import current_version
from mtmh.serving.api import Curve, CurvePoint

log = logging.getLogger("mtmh.serve")


def read_curve(config: Config) -> Curve | None:
    """Recall at the largest cut-off and topic match of every alpha; None without an evaluation of several alphas.

    An evaluation that cannot be read, or is being replaced, is a warning: the page opens without it.
    """
    try:
        return _curve(config)
    except (ValueError, OSError) as error:
        log.warning("no curve of the evaluation: %s", error)
        return None


def _curve(config: Config) -> Curve | None:
    folder = config.model_dir("evaluation")
    if not (folder / MANIFEST).is_file():
        return None
    evaluation = load_evaluation(folder)
    sweep = evaluation.sweep()
    if len(sweep) < 2:
        return None
    measured_on = open_artifact(folder, "evaluation").manifest.inputs.get("index")
    answers_now = open_artifact(current_version(config.model_dir("index")), "index").manifest.digest
    fine = all(row.match_l2 is not None for row in sweep)
    largest = evaluation.protocol.recall_at[-1]
    points = []
    for row in sweep:
        match = row.match_l2 if fine else row.match_l1
        assert row.alpha is not None
        points.append(
            CurvePoint(
                alpha=row.alpha, recall=row.recall[largest].value, match=match.value if match is not None else None
            )
        )
    return Curve(
        recall_at=largest,
        topic="topic_l2" if fine else "topic_l1",
        same_index=measured_on == answers_now,
        points=points,
    )
