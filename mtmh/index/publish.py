"""Builds the next version of a recipe's index and publishes it, if it passes the gate."""

from __future__ import annotations

from pathlib import Path

from mtmh.config import Config
from mtmh.index.build import build_index
from mtmh.index.versions import new_version, publish
from mtmh.training.distributed import join_ranks, on_first


def build_version(config: Config) -> Path:
    """Builds an index from the recipe's embeddings and makes it the published one; alone, or as one rank of torchrun.

    Returns:
        Folder of the version.

    Raises:
        BelowGateError: a head's ANN recall is below ``index.min_recall``; the version that was published stays so.
        ValueError: an input is missing or does not fit.
    """
    with join_ranks("cpu") as ranks:
        version = on_first(ranks, lambda: new_version(config.model_dir("index")))
        try:
            build_index(config, version)
        except BaseException:
            if ranks.is_first and not any(version.iterdir()):  # the name that was reserved
                version.rmdir()
            raise
        return on_first(
            ranks, lambda: publish(version, min_recall=config.index.min_recall, keep=config.index.keep_versions)
        )
