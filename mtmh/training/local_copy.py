"""Copies an artifact that training reads at random to a disk of each host, once a host and in order."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from mtmh.artifacts import Artifact, Kind, open_artifact
from mtmh.distributed.ranks import Ranks, on_all


def local_copy(folder: Path, kind: Kind, disk: Path | None, ranks: Ranks) -> Path:
    """The folder of an artifact, or of its copy on the host's disk; all ranks call it together.

    The first process of each host copies; the others wait, those of other runs too. A whole copy of the same artifact
    is taken as it is, by its name, which holds the digest; nothing is ever deleted from the disk but what a killed
    copy left.

    Args:
        folder: of the artifact, on a file system that all hosts see.
        kind: of it.
        disk: a folder on a disk of its own on each host; None: nothing is copied.
        ranks: this process among the others.

    Raises:
        ValueError: no such artifact, or not enough room on the disk.
        OSError: it cannot be read or written.
    """
    if disk is None:
        return folder
    artifact = open_artifact(folder, kind)
    copied = disk / f"{kind}-{artifact.manifest.digest[:16]}"
    on_all(lambda: _copy(artifact, kind, copied) if ranks.rank % ranks.local_world_size == 0 else None)
    return copied


def _copy(artifact: Artifact, kind: Kind, copied: Path) -> None:
    if not copied.is_dir():
        copied.parent.mkdir(parents=True, exist_ok=True)
        with copied.with_name(f".{copied.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until another run of this host has copied the same
            if not copied.is_dir():
                _copy_whole(artifact, copied)
    open_artifact(copied, kind)  # and its files are there in their sizes


def _copy_whole(artifact: Artifact, copied: Path) -> None:
    aside = copied.with_name(f".{copied.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    needed = sum(file.bytes for file in artifact.manifest.files.values())
    free = shutil.disk_usage(copied.parent).free
    if needed > free:
        raise ValueError(f"{copied.parent} (paths.local): {free:,} bytes are free, {artifact.path} takes {needed:,}")
    shutil.copytree(artifact.path, aside)
    aside.rename(copied)
