"""Folders of the runs of a benchmark: their names carry a digest of the settings that decide what is in them.

So a benchmark with other settings never answers from the runs of an earlier one. Code and raw files are not in the
digest: after a change of those the folders are to be removed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mtmh.artifacts import Kind
from mtmh.config import Config, decisive

_DIGITS = 10
_APART = {"name", "description", "paths", "service", "chain"}  # change neither a model nor its figures
_CONTENT: list[Kind] = ["dataset", "media", "encoder", "content"]


def run_name(name: str, config: Config, **more: Any) -> str:
    """``name`` with a digest of a recipe, but for names, places and service, and of ``more``."""
    return f"{name}-{_digest([config.model_dump(mode='json', exclude=_APART), more])}"


def shared_folders(config: Config) -> list[str]:
    """Overrides that give dataset and content embeddings, where the recipe does not name them, folders of their own."""
    root, paths = config.paths.root, config.paths
    dataset = root / f"dataset-{_digest(decisive(config, 'dataset'))}"
    content = root / f"content-{_digest([decisive(config, kind) for kind in _CONTENT])}"
    return [f"paths.dataset={paths.dataset or dataset}", f"paths.content={paths.content or content}"]


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]
