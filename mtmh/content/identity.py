"""Identity of a content training run: the settings and files that decide which numbers it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmh.artifacts import open_artifact
from mtmh.config import Config
from mtmh.content.teacher import concepts_path, encoder_config
from mtmh.data.dataset import Dataset
from mtmh.data.raw_files import stamp

# Settings that may change between a run and its resumption.
_FREE = ("checkpoint_every", "log_every", "gradient_checkpointing", "epochs", "max_steps")


def facts_of_run(
    config: Config, dataset: Dataset, pairs_of_source: dict[str, int], num_steps: int, files: Mapping[str, str]
) -> dict[str, Any]:
    """The settings and data that decide which numbers a run computes, as JSON values.

    Args:
        config: the recipe; where its files are may change, what is in them may not.
        dataset: the catalogue.
        pairs_of_source: as from `open_concepts`.
        num_steps: of the whole run.
        files: as from `identity_of_files`.
    """
    assert config.content.encoder is not None
    encoder = config.content.encoder.model_dump(mode="json", exclude={"images", "concepts"})
    encoder["training"] = {name: value for name, value in encoder["training"].items() if name not in _FREE}
    return {
        "encoder": encoder,
        "seed": config.seed,
        "max_tokens": config.content.max_tokens,
        "precision": config.content.precision,
        "dataset": dataset.artifact.manifest.digest,
        "pairs_of_source": pairs_of_source,
        "num_steps": num_steps,
        **files,
    }


def identity_of_files(config: Config, dataset: Dataset) -> dict[str, str]:
    """Tells another table of concepts or other pictures, whatever their number: name of the setting -> identity.

    Concepts are told by content. Pictures, which may be terabytes, by name, size and time of change. Both are read
    from disk: one rank does it for all.
    """
    table = concepts_path(config)
    assert table is not None
    with table.open("rb") as file:
        return {
            "concepts": hashlib.file_digest(file, "sha256").hexdigest(),
            "images": identity_of_images(config, dataset),
        }


def identity_of_images(config: Config, dataset: Dataset) -> str:
    """Changes when pictures are exchanged, added or removed; those of simulated media are told by their manifest."""
    encoder = encoder_config(config)
    if encoder.image is None:
        return "unused"
    if encoder.images is None and config.media_dir.exists():
        return open_artifact(config.media_dir, "media").manifest.digest
    if encoder.images is not None:
        return stamp([encoder.images])
    names = dataset.items(["image"]).column("image")
    return stamp(Path(name) for chunk in names.iterchunks() for name in chunk.to_pylist() if isinstance(name, str))
