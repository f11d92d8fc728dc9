"""The checkpoints of a folder, newest first: finding and opening them takes no torch."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mtmh.artifacts import Artifact, DamagedArtifactError, open_artifact

logger = logging.getLogger(__name__)

FOLDER = re.compile(r"step-(\d{8,})")
VALIDATION = "validation"  # beside the checkpoints: the run that does not see the end of T1
LENGTH = "num_steps"  # in a checkpoint's summary: of the whole run


def latest_checkpoint(root: Path) -> Path:
    """The newest checkpoint under ``root`` whose files all have their recorded size.

    Raises:
        ValueError: there is none, or the newest whole one is of another format.
    """
    for path in newest_first(root):
        try:
            return open_checkpoint(path).path
        except DamagedArtifactError as error:
            logger.warning("DAMAGED CHECKPOINT skipped, trying the one before it: %s", error)
    raise ValueError(f"{root}: no complete checkpoint here; train the model first (mtmh train)")


def last_without_end(root: Path) -> Artifact | None:
    """The last checkpoint of the run beside those of ``root`` that is as long and has not seen the end of T1.

    Returns:
        None: there was no such run, it has not come to its end, or its checkpoints are gone.
    """
    try:
        last = open_checkpoint(latest_checkpoint(root / VALIDATION))
    except ValueError:
        return None
    return last if last.summary["step"] == last.summary.get(LENGTH) else None


def open_checkpoint(path: Path) -> Artifact:
    """Opens a checkpoint, and compares its step with the name of its folder.

    Raises:
        DamagedArtifactError: they differ, or a file is missing, truncated or altered.
    """
    artifact = open_artifact(path, "checkpoint")
    name = FOLDER.fullmatch(path.name)
    if name and int(name[1]) != artifact.summary.get("step"):
        raise DamagedArtifactError(f"{path}: its manifest is of step {artifact.summary.get('step')}")
    return artifact


def newest_first(root: Path) -> list[Path]:
    """The folders under ``root`` that are named as checkpoints are."""
    found = [path for path in root.glob("step-*") if FOLDER.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
