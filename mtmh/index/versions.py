"""The versioned index folder: built versions side by side, and one small file that names the published one.

    CURRENT               which version readers take, and the ones before it; replaced by one rename
    versions/000003/      an index artifact
    versions/000004.rejected/   one that missed the recall gate, kept to look at until the next one is rejected
    segments/             what was added to and removed from the catalogue since (``segments.py``)
    .lock                 writers wait for each other here; readers never do (``writers.py``)
    .compact-*/           scratch of a compaction at work

A version is complete and checked before ``CURRENT`` names it, so a reader finds a whole index at every moment, and a
writer that is killed at any point leaves the published one as it was.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtmh.artifacts import MANIFEST, Artifact, fsync, open_artifact, write_atomically
from mtmh.config import MilvusConfig
from mtmh.index.artifact import IndexSummary
from mtmh.index.milvus import drop_collections
from mtmh.index.writers import writing

CURRENT = "CURRENT"
VERSIONS = "versions"

_REJECTED = ".rejected"
_NAME = r"^[0-9]{6,}$"

VersionState = Literal["current", "published", "rejected", "unpublished", "damaged"]


class Pointer(BaseModel):
    """The content of ``CURRENT``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[str, Field(pattern=_NAME)]
    before: list[Annotated[str, Field(pattern=_NAME)]] = []  # published before it, the latest first
    # Published once and neither of these: no longer kept or taken back. On disk until the next publication at most.
    left: list[Annotated[str, Field(pattern=_NAME)]] = []
    # The highest number that any version had when this was written: of some, nothing else is left. 0: not known, as in
    # pointers of earlier versions of mtmh.
    highest: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Version:
    """One folder of the versions.

    Attributes:
        name: of the folder.
        state: ``published``: an earlier one, to which one can roll back.
        created_at: as in its manifest; empty if it cannot be read.
        num_items: of its catalogue.
        recall: ANN recall against exact search, by head.
    """

    name: str
    state: VersionState
    created_at: str = ""
    num_items: int = 0
    recall: dict[str, float] | None = None


class BelowGateError(ValueError):
    """A new index finds too few of the true neighbours to be published."""


def current_version(index_dir: Path) -> Path:
    """The folder of the published version.

    Args:
        index_dir: the versioned folder; an index artifact given instead is returned as it is, so that every reader
            may be pointed at one version.

    Raises:
        ValueError: nothing is published there.
    """
    if (index_dir / MANIFEST).is_file():
        return index_dir
    return version_folder(index_dir, read_pointer(index_dir).version)


def version_folder(index_dir: Path, name: str) -> Path:
    """The folder of the version ``name``, there or not."""
    return index_dir / VERSIONS / name


def find_version(index_dir: Path, name: str) -> Path:
    """The folder of a version on disk.

    Args:
        index_dir: the versioned folder.
        name: as ``list_versions`` shows it; leading zeros and the mark of a rejected version may be left out.

    Raises:
        ValueError: there is no such version; the message lists those that are.
    """
    on_disk = {path.name.removesuffix(_REJECTED).lstrip("0"): path for path in _folders(index_dir)}
    found = on_disk.get(name.removesuffix(_REJECTED).lstrip("0"))
    if found is None:
        known = ", ".join(sorted(path.name for path in on_disk.values())) or "none"
        raise ValueError(f"{index_dir}: no version {name}; there are: {known}")
    return found


def read_pointer(index_dir: Path) -> Pointer:
    """Reads ``CURRENT``.

    Raises:
        ValueError: it is not there or not readable.
    """
    path = index_dir / CURRENT
    try:
        return Pointer.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{index_dir}: no index is published here; run mtmh build-index first") from None
    except ValidationError as error:
        raise ValueError(
            f"{path}: not readable: {error.errors()[0]['msg']}; mtmh index publish writes it anew"
        ) from None


def new_version(index_dir: Path) -> Path:
    """Reserves the next version and returns its folder, empty; names are never used twice.

    Raises:
        ValueError: ``index_dir`` is itself an index artifact.
    """
    if (index_dir / MANIFEST).is_file():
        raise ValueError(f"{index_dir}: holds one index without versions; move it away, versions go there")
    (index_dir / VERSIONS).mkdir(parents=True, exist_ok=True)
    while True:
        numbers = _numbers(index_dir)  # before the pointer: who removes folders has noted their numbers there
        pointer = read_pointer(index_dir) if (index_dir / CURRENT).is_file() else None
        path = version_folder(index_dir, f"{_highest(numbers, pointer) + 1:06d}")
        try:
            path.mkdir()
        except FileExistsError:  # another writer was faster
            continue
        return path


def publish(
    version: Path,
    *,
    min_recall: float = 0.0,
    keep: int = 3,
    over: str | None = None,
    milvus: MilvusConfig | None = None,
) -> Path:
    """Makes a version the one that readers take, after it passed every check.

    Args:
        version: a folder that ``new_version`` reserved and a build filled, or an earlier version.
        min_recall: the gate: ANN recall against exact search that every head must reach.
        keep: published versions that stay on disk, this one included.
        over: the version that must be the published one until now; empty: none may be; None: any.
        milvus: where the collections of versions that go are deleted; None: none are.

    Returns:
        The folder of the version (a rejected one loses its suffix).

    Raises:
        BelowGateError: a head's recall is below the gate; the folder is renamed to ``*.rejected`` unless it had been
            published before. The version that was published stays so.
        ValueError: not an index artifact, or a file is missing, truncated or altered; likewise.
    """
    index_dir = version.parent.parent
    artifact = open_artifact(version, "index")
    artifact.verify()
    with writing(index_dir):
        before = read_pointer(index_dir) if (index_dir / CURRENT).is_file() else None
        earlier = [] if before is None else [before.version, *before.before]
        if over is not None and over != (before.version if before else ""):
            raise ValueError(
                f"{version}: not published: meant to follow {over or 'no other version'}, but"
                f" {before.version if before else 'none'} is the published one by now"
            )
        try:
            check_gate(artifact, min_recall)
        except BelowGateError:
            if version.name not in earlier and not version.name.endswith(_REJECTED):
                if before is not None:
                    _point(index_dir, before)
                _reject(version, milvus)
            raise
        if version.name.endswith(_REJECTED):  # the gate was lowered
            version = version.rename(version.with_name(version.name.removesuffix(_REJECTED)))
        for file in (version, *(version / name for name in artifact.manifest.files)):
            fsync(file)
        kept = [name for name in earlier if name != version.name][: keep - 1]
        once = dict.fromkeys([*earlier, *(before.left if before else [])])
        left = [name for name in once if name not in (version.name, *kept) and version_folder(index_dir, name).is_dir()]
        highest = before.highest if before else 0
        _point(index_dir, Pointer(version=version.name, before=kept, left=left, highest=highest))
        _remove_old(index_dir, published={version.name, *kept}, left=left, candidates=keep, milvus=milvus)
    return version


def rollback(index_dir: Path, to: str | None = None) -> Path:
    """Puts an earlier version back; the one that leaves stays on disk until the next is published.

    Args:
        index_dir: the versioned folder.
        to: name of the version; None: the one published before the current one.

    Raises:
        ValueError: there is none, or it is damaged; the current one stays.
    """
    with writing(index_dir):
        pointer = read_pointer(index_dir)
        if not pointer.before:
            raise ValueError(f"{index_dir}: {pointer.version} is the only published version; nothing to go back to")
        name = to or pointer.before[0]
        if name not in pointer.before:
            raise ValueError(
                f"{index_dir}: cannot go back to {name}: not published before {pointer.version}"
                f" (there are {', '.join(pointer.before)})"
            )
        open_artifact(version_folder(index_dir, name), "index").verify()
        place = pointer.before.index(name)
        left = [pointer.version, *pointer.before[:place], *pointer.left]
        _point(index_dir, Pointer(version=name, before=pointer.before[place + 1 :], left=left, highest=pointer.highest))
    return version_folder(index_dir, name)


def list_versions(index_dir: Path) -> list[Version]:
    """All versions on disk, the newest first.

    Raises:
        ValueError: ``CURRENT`` is damaged.
    """
    pointer = read_pointer(index_dir) if (index_dir / CURRENT).is_file() else None
    found = []
    for path in sorted(_folders(index_dir), reverse=True):
        state: VersionState = "unpublished"
        if path.name.endswith(_REJECTED):
            state = "rejected"
        elif pointer is not None and path.name == pointer.version:
            state = "current"
        elif pointer is not None and path.name in pointer.before:
            state = "published"
        try:
            artifact = open_artifact(path, "index")
            summary = IndexSummary.model_validate(artifact.summary)
        except ValueError:
            # An empty folder is one that a build has reserved and not filled.
            found.append(Version(path.name, "damaged" if any(path.iterdir()) else "unpublished"))
            continue
        recall = {head: measured.recall for head, measured in summary.ann_recall.items()}
        found.append(Version(path.name, state, artifact.manifest.created_at, summary.num_items, recall))
    return found


def check_gate(artifact: Artifact, min_recall: float) -> None:
    """Compares the recall that the build measured with the gate.

    Raises:
        BelowGateError: a head is below; the message has the figures of all that are.
    """
    measured = IndexSummary.model_validate(artifact.summary).ann_recall
    missed = [
        f"{head} {found.recall:.4f} (recall@{found.k} of {found.num_queries} queries, {found.num_probes} probes)"
        for head, found in measured.items()
        if found.recall < min_recall
    ]
    if missed:
        raise BelowGateError(
            f"{artifact.path}: not published: ANN recall is below index.min_recall = {min_recall:g}:"
            f" {'; '.join(missed)}; retrieval.num_probes: auto finds how many probes reach it; if none do, take another"
            " index.storage or a larger index.refine_factor"
        )


def _point(index_dir: Path, pointer: Pointer) -> None:
    """Writes the pointer, with the numbers of all versions that are on disk now noted."""
    pointer = pointer.model_copy(update={"highest": _highest(_numbers(index_dir), pointer)})
    write_atomically(index_dir / CURRENT, pointer.model_dump_json() + os.linesep)


def _reject(version: Path, milvus: MilvusConfig | None) -> None:
    for older in version.parent.glob(f"*{_REJECTED}"):
        drop_collections(older, milvus)
        shutil.rmtree(older)
    version.rename(version.with_name(version.name + _REJECTED))


def _remove_old(
    index_dir: Path, published: set[str], left: list[str], candidates: int, milvus: MilvusConfig | None
) -> None:
    """Removes what nobody can be at work on.

    Args:
        index_dir: the versioned folder.
        published: names of versions that stay.
        left: names of versions that were published once and go.
        candidates: how many whole versions that never were published stay in any case, the newest ones: a chain may
            be evaluating one while others publish. Older ones go once they are older than all of ``published``.
        milvus: where their collections are.
    """
    oldest = min(published)
    others = [path for path in sorted(_folders(index_dir), reverse=True) if path.name not in (*published, *left)]
    others = [path for path in others if not path.name.endswith(_REJECTED)]
    whole = [path for path in others if (path / MANIFEST).is_file()]
    gone = [path for path in whole[candidates:] if path.name < oldest]
    # What killed builds and removals have left. One that is under way is hardly older than two published versions.
    killed = [path for path in others if path not in whole]
    killed += (index_dir / VERSIONS).glob(".[0-9]*")
    if len(published) > 1:
        gone += [path for path in killed if path.name.removeprefix(".").partition(".")[0] < oldest]
    for path in [*(version_folder(index_dir, name) for name in left), *gone]:
        if path.name.endswith(".lock"):
            path.unlink(missing_ok=True)
            continue
        # Steps aside first: a reader that comes late finds no folder rather than half of one.
        aside = path if path.name.startswith(".") else path.rename(path.with_name(f".{path.name}.old"))
        drop_collections(aside, milvus)
        shutil.rmtree(aside)


def _numbers(index_dir: Path) -> list[int]:
    return [int(path.name.removesuffix(_REJECTED)) for path in _folders(index_dir)]


def _highest(numbers: list[int], pointer: Pointer | None) -> int:
    """Of some versions and all that a pointer names."""
    named = [pointer.highest, *map(int, (pointer.version, *pointer.before, *pointer.left))] if pointer else []
    return max([*numbers, *named], default=0)


def _folders(index_dir: Path) -> list[Path]:
    found = (index_dir / VERSIONS).glob("[0-9]*") if (index_dir / VERSIONS).is_dir() else iter(())
    return [path for path in found if path.is_dir() and path.name.removesuffix(_REJECTED).isdigit()]
