"""The making of an evaluated index: its version, its data, how long its model was trained and what that went by."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from mtmh import __version__
from mtmh.artifacts import MANIFEST, Artifact, open_artifact
from mtmh.data.dataset import Dataset
from mtmh.evaluation.results import Origin, ValidationPoint
from mtmh.training.newest import latest_checkpoint


def origin_of(index: Artifact, dataset: Dataset, embeddings: Path, checkpoints: Path) -> Origin:
    """Facts about an index.

    Args:
        index: that was evaluated.
        dataset: its data.
        embeddings: folder of the recipe's embeddings.
        checkpoints: folder of its checkpoints.

    Returns:
        Without facts about training where the recipe's artifacts are not those that the index goes back to.
    """
    data = dataset.summary
    ends = data.test_begin if data.test_begin is not None else data.train_end
    found = Origin(
        mtmh_version=__version__,
        index=index.path.name,
        index_built=_minute(index.manifest.created_at),
        data_read=_minute(dataset.artifact.manifest.created_at),
        train_events=data.num_train_events,
        test_events=data.num_test_events,
        train_until=f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%d}" if data.timestamp_is_date and ends else "",
    )
    trained = _trained(index, embeddings, checkpoints)
    if trained is None:
        return found
    found.steps = int(trained.summary["step"])
    if (validation := trained.summary.get("validation")) is not None:
        found.best_step = validation["best"]["step"]
        found.validation = [ValidationPoint.model_validate(point) for point in validation["curve"]]
    return found


def _trained(index: Artifact, embeddings: Path, checkpoints: Path) -> Artifact | None:
    """The checkpoint that an index goes back to; None if its artifacts are not there any more."""
    if not (embeddings / MANIFEST).is_file():
        return None
    made = open_artifact(embeddings, "embeddings").manifest
    try:
        trained = open_artifact(latest_checkpoint(checkpoints), "checkpoint")
    except ValueError:
        return None
    same = index.manifest.inputs.get("embeddings") == made.digest
    return trained if same and made.inputs.get("checkpoint") == trained.manifest.digest else None


def _minute(instant: str) -> str:
    """``2026-11-28 08:15 UTC`` of an ISO time."""
    return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
