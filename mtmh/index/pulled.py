"""Brings the index version that is published on object storage into a versioned folder and publishes it there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from mtmh.artifacts import MANIFEST
from mtmh.index.versions import CURRENT, current_version, new_version, publish
from mtmh.places import AnyPath
from mtmh.transfer import published_manifest, pull


def pull_version(
    source: AnyPath, index_dir: Path, *, min_recall: float = 0.0, keep: int = 3, trusted_key: Path | None = None
) -> Path | None:
    """Pulls and publishes; services over ``index_dir`` take it into use as any new version.

    Collections of Milvus stay when versions leave this folder: other machines may be at work on them.

    Args:
        source: where ``mtmh artifact push`` published versions.
        index_dir: the versioned folder.
        min_recall: as `publish`.
        keep: as `publish`.
        trusted_key: as `pull`.

    Returns:
        The folder of the version; ``None``: it is the published one already.

    Raises:
        BelowGateError: as `publish`.
        ValueError: nothing is published at ``source``, or it is not a whole index; what is published here stays so.
    """
    if (index_dir / CURRENT).is_file():
        here = current_version(index_dir) / MANIFEST
        if here.is_file() and here.read_bytes() == published_manifest(source):
            return None
    folder = new_version(index_dir)
    try:
        pull(source, folder, trusted_key=trusted_key)
        return publish(folder, min_recall=min_recall, keep=keep)
    except BaseException:
        with suppress(OSError):  # a whole one stays, to look at
            folder.rmdir()
        raise
