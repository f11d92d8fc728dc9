"""Builds the next version of a recipe's index and publishes it, if it passes the gate."""

from __future__ import annotations

from pathlib import Path

from mtmh.config import Config
from mtmh.distributed.ranks import join_ranks, on_first
from mtmh.index import versions
from mtmh.index.build import build_index


def build_version(config: Config, *, publish: bool = True) -> Path:
    """Builds an index from the recipe's embeddings and makes it the published one; alone, or as one rank of torchrun.

    Args:
        config: the recipe.
        publish: with ``False`` the version stays unpublished, and its recall is not compared with the gate.

    Returns:
        Folder of the version.

    Raises:
        BelowGateError: a head's ANN recall is below ``index.min_recall``; the version that was published stays so.
        ValueError: an input is missing or does not fit.
    """
    settings = config.index
    with join_ranks("cpu") as ranks:
        version = on_first(ranks, lambda: versions.new_version(config.model_dir("index")))
        try:
            build_index(config, version)
        except BaseException:
            if ranks.is_first and not any(version.iterdir()):  # the name that was reserved
                version.rmdir()
            raise
        if not publish:
            return version
        return on_first(
            ranks,
            lambda: versions.publish(version, min_recall=settings.min_recall, keep=settings.keep_versions),
        )
