"""Identity of a content training run: the settings and files that decide which numbers it computes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmh.config import ContentConfig, EncoderConfig
from mtmh.content.teacher import ContentFiles, encoder_config
from mtmh.data.dataset import Dataset
from mtmh.data.raw_files import stamp

# Settings that may change between a run and its resumption.
_FREE = ("checkpoint_every", "log_every", "gradient_checkpointing", "epochs", "max_steps")


def facts_of_run(
    content: ContentConfig,
    seed: int,
    dataset: Dataset,
    pairs_of_source: dict[str, int],
    num_steps: int,
    files: Mapping[str, str],
) -> dict[str, Any]:
    """The settings and data that decide which numbers a run computes, as JSON values.

    Args:
        content: the settings; where files are may change, what is in them may not.
        seed: of the run.
        dataset: the catalogue.
        pairs_of_source: as from `open_concepts`.
        num_steps: of the whole run.
        files: as from `identity_of_files`.
    """
    encoder = encoder_config(content).model_dump(mode="json", exclude={"images", "concepts"})
    encoder["training"] = {name: value for name, value in encoder["training"].items() if name not in _FREE}
    return {
        "encoder": encoder,
        "seed": seed,
        "max_tokens": content.max_tokens,
        "precision": content.precision,
        "dataset": dataset.artifact.manifest.digest,
        "pairs_of_source": pairs_of_source,
        "num_steps": num_steps,
        **files,
    }


def identity_of_files(encoder: EncoderConfig, files: ContentFiles, dataset: Dataset) -> dict[str, str]:
    """Tells another table of concepts or other pictures, whatever their number: name of the setting -> identity.

    Concepts are told by content. Pictures, which may be terabytes, by name, size and time of change. Both are read
    from disk: one rank does it for all.
    """
    assert files.concepts is not None
    with files.concepts.open("rb") as file:
        return {
            "concepts": hashlib.file_digest(file, "sha256").hexdigest(),
            "images": identity_of_images(encoder, files, dataset),
        }


def identity_of_images(encoder: EncoderConfig, files: ContentFiles, dataset: Dataset) -> str:
    """Changes when pictures are exchanged, added or removed; those of simulated media are told by their manifest."""
    if encoder.image is None:
        return "unused"
    if files.images_of_media:
        assert files.media is not None
        return files.media.manifest.digest
    if files.images is not None:
        return stamp([files.images])
    names = dataset.items(["image"]).column("image")
    return stamp(Path(name) for chunk in names.iterchunks() for name in chunk.to_pylist() if isinstance(name, str))
