"""Finds the model and the embeddings that have not seen the end of T1, on which evidence is weighed."""

from __future__ import annotations

from pathlib import Path

from mtmh.artifacts import Artifact, open_artifact
from mtmh.training.newest import latest_checkpoint
from mtmh.training.trainer import VALIDATION


def model_without_end(checkpoints: Path, embeddings: Path) -> Artifact | None:
    """The best checkpoint of the run that chose how long the model of the embeddings trained.

    Args:
        checkpoints: folder of the model's checkpoints.
        embeddings: folder of its embeddings.

    Returns:
        the checkpoint; None: no length was chosen, or the newest checkpoint is not that of the embeddings.

    Raises:
        ValueError: there are no embeddings.
    """
    made = open_artifact(embeddings, "embeddings")
    try:
        trained = open_artifact(latest_checkpoint(checkpoints), "checkpoint")
        if trained.manifest.digest != made.manifest.inputs.get("checkpoint"):
            return None
        step = trained.summary["validation"]["best"]["step"]
        return open_artifact(checkpoints / VALIDATION / f"step-{step:08d}", "checkpoint")
    except (KeyError, ValueError):  # no choice was made, or its checkpoints are gone
        return None


def embedded_by(folder: Path, checkpoint: Artifact) -> bool:
    """True if these are embeddings of the checkpoint's model."""
    try:
        made = open_artifact(folder, "embeddings")
    except ValueError:
        return False
    return made.manifest.inputs.get("checkpoint") == checkpoint.manifest.digest
