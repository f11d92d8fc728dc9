"""Segments: what was added to and removed from an index since it was built, as small immutable artifacts in order.

    segments/000012/          one change: items.parquet (raw rows of new items) and removed.parquet (ids)
    segments/000001-000011/   changes 1 to 11 as one, in the place of these

Each names the digest of the change before it, so that one that was swapped or written over is noticed.

A segment holds raw features, no vectors: each version embeds them with its own tower when it is opened, so that a newly
trained version takes over all fresh items. To apply a segment: first its removals, then its items, but for those that
the index holds by then; a removed item that the version was trained on comes back with the version's row. Applying it
twice changes nothing, and neither does applying a run of changes to an index that has a part of them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtmh.artifacts import Artifact, fsync, open_artifact, write_artifact
from mtmh.data.arrays import ItemId
from mtmh.data.parquet import read_whole
from mtmh.data.schema import ITEM_ID

SEGMENTS = "segments"
ADDED = "items.parquet"
REMOVED = "removed.parquet"

_NAME = re.compile(r"(\d{6,})(?:-(\d{6,}))?")
_LOOKS = 20


class ChangesLostError(ValueError):
    """Changes that are in use are not on the disk any more: another one must not take their number."""


@dataclass(frozen=True)
class Segment:
    """A run of changes.

    Attributes:
        first: number of the first change.
        last: number of the last one.
        added: raw rows of new items.
        removed: ids, removed before the items came.
    """

    first: int
    last: int
    added: pa.Table
    removed: list[ItemId]


def last_change(index_dir: Path) -> int:
    """Number of the latest change; 0: there is none."""
    return max((last for _, last, _ in _runs(index_dir)), default=0)


def read_segments(index_dir: Path, after: int) -> list[Segment]:
    """The changes after number ``after`` in order; the first run may begin before it.

    Raises:
        ValueError: a segment is missing, truncated or altered; the message names it.
    """
    for look in range(_LOOKS):
        runs = _runs(index_dir)
        try:
            return _read_all([run for run in runs if run[1] > after])
        except (ValueError, FileNotFoundError) as error:
            # Another process may have put one segment in the place of several meanwhile: then look again.
            if runs == _runs(index_dir) or look == _LOOKS - 1:
                raise ValueError(str(error)) from None
    raise AssertionError("unreachable")


def write_segment(index_dir: Path, segment: Segment) -> None:
    """Writes the next change; the caller holds the lock of the folder (``writers.writing``). Then it is on the disk.

    Args:
        index_dir: the versioned folder.
        segment: one change, the one after the latest there.

    Raises:
        ChangesLostError: the latest is another one.
    """
    runs = _runs(index_dir)
    check_present(index_dir, segment.first - 1)
    before = open_artifact(runs[-1][2], "segment") if runs else None
    _write(index_dir / SEGMENTS / f"{segment.first:06d}", segment.added, segment.removed, _end(before))


def check_present(index_dir: Path, change: int) -> None:
    """Checks that changes up to a number are still on the disk.

    Raises:
        ChangesLostError: some are gone.
    """
    latest = last_change(index_dir)
    if latest < change:
        raise ChangesLostError(
            f"{index_dir / SEGMENTS}: holds changes up to {latest}, and change {change} is in use: bring the others"
            " back, or build and publish a new version"
        )


def merge_segments(index_dir: Path, through: int) -> None:
    """Puts one segment in the place of all changes up to ``through``; the caller holds the lock of the folder."""
    runs = [run for run in _runs(index_dir) if run[1] <= through]
    if len(runs) < 2:
        return
    added: list[pa.Table] = []
    removed: dict[ItemId, None] = {}
    for run in runs:
        segment = _read(*run)
        removed |= dict.fromkeys(segment.removed)
        gone = pa.array(segment.removed, segment.added.schema.field(ITEM_ID).type)
        added = [rows.filter(pc.invert(pc.is_in(rows.column(ITEM_ID), value_set=gone))) for rows in added]
        added.append(segment.added)
    rows = pa.concat_tables(added, promote_options="default")
    first, latest = (open_artifact(runs[place][2], "segment") for place in (0, -1))
    name = f"{runs[0][0]:06d}-{runs[-1][1]:06d}"
    _write(index_dir / SEGMENTS / name, rows, list(removed), first.summary["after"], end=_end(latest))
    for _, _, folder in runs:
        shutil.rmtree(folder)


def _read_all(runs: Sequence[tuple[int, int, Path]]) -> list[Segment]:
    """Reads runs that follow each other.

    Raises:
        ValueError: one is damaged, or was not written after the one before it.
    """
    found: list[Segment] = []
    end: str | None = None
    for first, last, folder in runs:
        artifact = open_artifact(folder, "segment")
        if found and artifact.summary["after"] != end:
            raise ValueError(f"{folder}: was written after another change than the one that is before it now")
        found.append(_read(first, last, folder))
        end = _end(artifact)
    return found


def _end(artifact: Artifact | None) -> str:
    """Digest of the last change in a segment, to which the next one refers; empty: there is none."""
    if artifact is None:
        return ""
    end: str = artifact.summary["end"]
    return end or artifact.manifest.digest


def _read(first: int, last: int, folder: Path) -> Segment:
    artifact = open_artifact(folder, "segment")
    artifact.verify()
    removed = read_whole(folder / REMOVED).column(ITEM_ID).to_pylist()
    return Segment(first, last, read_whole(folder / ADDED), removed)


def _write(folder: Path, added: pa.Table, removed: Sequence[ItemId], after: str, end: str = "") -> None:
    """Writes a segment.

    Args:
        folder: of the segment.
        added: raw rows.
        removed: ids.
        after: digest of the change before it.
        end: digest of its last change; empty: that of the segment itself.
    """
    with write_artifact(folder, "segment", config={}) as writer:
        pq.write_table(added, writer.folder / ADDED)
        ids = pa.array(removed, added.schema.field(ITEM_ID).type)
        pq.write_table(pa.table({ITEM_ID: ids}), writer.folder / REMOVED)
        for name in (ADDED, REMOVED):
            fsync(writer.folder / name)
        writer.summary |= {"added": len(added), "removed": len(removed), "after": after, "end": end}


def _runs(index_dir: Path) -> list[tuple[int, int, Path]]:
    """The runs of changes in order: first, last, folder. One that a longer run covers is left out.

    Raises:
        ValueError: a change is missing in the sequence.
    """
    folder = index_dir / SEGMENTS
    names = [_NAME.fullmatch(path.name) for path in (folder.iterdir() if folder.is_dir() else ())]
    found = [(int(name[1]), int(name[2] or name[1]), folder / name[0]) for name in names if name is not None]
    runs: list[tuple[int, int, Path]] = []
    for first, last, path in sorted(found, key=lambda run: (run[0], -run[1])):
        expected = runs[-1][1] + 1 if runs else 1
        if last < expected:
            continue
        if first != expected:
            raise ValueError(f"{folder}: change {expected} is missing, the next one there is {path.name}")
        runs.append((first, last, path))
    return runs
