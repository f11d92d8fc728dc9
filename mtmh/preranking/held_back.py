"""Finds the model and the embeddings that have not seen the end of T1, on which evidence is weighed."""

from __future__ import annotations

from pathlib import Path

from mtmh.artifacts import Artifact, open_artifact
from mtmh.training.newest import VALIDATION, last_without_end, latest_checkpoint


def model_without_end(checkpoints: Path, embeddings: Path) -> Artifact | None:
    """The model of the run beside that of the embeddings which has not seen the end of T1.

    Where that run chose the length, its best checkpoint; where the length was set by hand, its last one.

    Args:
        checkpoints: folder of the model's checkpoints.
        embeddings: folder of its embeddings.

    Returns:
        the checkpoint; None: there was no such run, it has not come to its end, or the newest checkpoint is not that of
            the embeddings.

    Raises:
        ValueError: there are no embeddings.
    """
    made = open_artifact(embeddings, "embeddings")
    try:
        trained = open_artifact(latest_checkpoint(checkpoints), "checkpoint")
        if trained.manifest.digest != made.manifest.inputs.get("checkpoint"):
            return None
        if (chosen := trained.summary.get("validation")) is not None:
            return open_artifact(checkpoints / VALIDATION / f"step-{chosen['best']['step']:08d}", "checkpoint")
    except ValueError:  # there was none, or its checkpoints are gone
        return None
    return last_without_end(checkpoints)


def embedded_by(folder: Path, checkpoint: Artifact) -> bool:
    """True if these are embeddings of the checkpoint's model."""
    try:
        made = open_artifact(folder, "embeddings")
    except ValueError:
        return False
    return made.manifest.inputs.get("checkpoint") == checkpoint.manifest.digest
