"""Artifact folders: data files and a ``manifest.json``; a folder appears whole or not at all.

Every stage reads artifacts and writes one. Files are written into a folder aside, which takes the final name
by one rename after the manifest stands; a reader checks the manifest before it trusts a file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mtmh import __version__
from mtmh.sole_writer import sole_writer
from mtmh.source_code import code_digest

Kind = Literal[
    "dataset",
    "media",
    "encoder",
    "content",
    "checkpoint",
    "embeddings",
    "index",
    "segment",
    "preranker",
    "evaluation",
    "check",
    "similar-items",
]

WRITTEN_BY: dict[Kind, str] = {
    "dataset": "mtmh prepare",
    "media": "mtmh content simulate",
    "encoder": "mtmh content train",
    "content": "mtmh content embed",
    "checkpoint": "mtmh train",
    "embeddings": "mtmh embed",
    "index": "mtmh build-index",
    "segment": "mtmh index add",
    "preranker": "mtmh train-preranker",
    "evaluation": "mtmh evaluate",
    "check": "mtmh content check",
    "similar-items": "mtmh similar-items",
}

# The modules whose code, and all that it can reach, decides what is in an artifact.
_MADE_BY: dict[Kind, tuple[str, ...]] = {
    "dataset": ("mtmh.prepare.prepare",),
    "media": ("mtmh.prepare.sources.synthetic_media",),
    "encoder": ("mtmh.content.train",),
    "content": ("mtmh.content.embed",),
    "checkpoint": ("mtmh.training.trainer",),
    "embeddings": ("mtmh.tower.embed",),
    "index": ("mtmh.index.build",),
    "segment": ("mtmh.live.live_index",),
    "preranker": ("mtmh.preranking.trainer", "mtmh.preranking.export"),
    "evaluation": ("mtmh.evaluation.evaluate",),
    "check": ("mtmh.content.check",),
    "similar-items": ("mtmh.retrieval.similar_items",),
}

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


class DamagedArtifactError(ValueError):
    """Files are missing, truncated or altered; an artifact of another kind, format or schema is not damaged."""


class OtherFormatError(ValueError):
    """An mtmh of another format wrote it: whole perhaps, but not for this one to read."""


class FileRecord(BaseModel):
    """Size and SHA-256 of one data file."""

    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Reads the file."""
        return cls(bytes=path.stat().st_size, sha256=_sha256(path))


def _inside(name: str) -> str:
    """The name of a file, if it is one within the folder."""
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{name!r} is not the name of a file in the folder")
    return name


class Manifest(BaseModel):
    """The description of a folder: its files, the inputs it was made from, and the settings."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    format_version: int
    mtmh_version: str
    code: str  # `code_of` its kind, as the writer had it
    created_at: str
    config: dict[str, Any]  # the whole recipe, to read and to compare
    decisive: dict[str, Any]  # those of its settings that decide what is in the files, by dotted key
    inputs: dict[str, str]  # name -> digest of the input artifact
    summary: dict[str, Any]  # facts of this kind, made of JSON values
    files: dict[Annotated[str, AfterValidator(_inside)], FileRecord]
    # Of all other fields as they stand in the file, against damage; empty: of a writer that recorded none.
    sha256: str = ""

    @property
    def digest(self) -> str:
        """Identity of the content: kind, format, inputs, decisive settings, facts and files.

        Who wrote it when, and what else stood in the recipe, is no part of it: the same stage on the same inputs gives
        the same identity.
        """
        identity = self.model_dump(exclude={"created_at", "mtmh_version", "code", "config", "sha256"})
        return hashlib.sha256(_canonical_json(identity)).hexdigest()


class Artifact:
    """A complete artifact on disk.

    Attributes:
        path: the folder.
        manifest: its checked manifest.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest: Manifest = manifest

    @property
    def summary(self) -> dict[str, Any]:
        """The facts that the writing stage recorded."""
        return self.manifest.summary

    def verify(self, part: int = 0, num_parts: int = 1) -> None:
        """Compares files with their recorded size and SHA-256.

        Args:
            part: which part of the files, for ranks that share the work.
            num_parts: in so many parts of about equal size; 1: all files.

        Raises:
            DamagedArtifactError: a file is missing, truncated or altered; the message names it.
        """
        files = sorted(self.manifest.files.items(), key=lambda file: file[1].bytes, reverse=True)
        for name, record in files[part::num_parts]:
            _check_size(self.path / name, record)
            if _sha256(self.path / name) != record.sha256:
                raise DamagedArtifactError(f"{self.path / name}: altered since it was written (SHA-256 differs)")


class ArtifactWriter:
    """Collects the files of a new artifact in ``folder``; ``commit`` makes it appear under its final name.

    With several ranks every rank makes a writer for the same ``path``, all write files of distinct names, and
    after a barrier rank 0 alone calls ``commit``.

    Attributes:
        folder: where the files go until then.
        summary: facts to record, JSON values only.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        _restore(path)
        _refuse_foreign(path, kind)
        self.path = path
        self.kind: Kind = kind
        self.folder = path.with_name(f".{path.name}.partial")
        self.summary: dict[str, Any] = {}

    def begin(self) -> None:
        """Starts from an empty folder; what an interrupted writer left there is dropped."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def commit(
        self,
        config: Mapping[str, Any],
        inputs: Mapping[str, Artifact],
        records: Mapping[str, FileRecord] | None = None,
        *,
        decisive: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Writes the manifest and moves the folder to its final name, in place of an older artifact there.

        Args:
            config: the recipe.
            inputs: what the artifact was made from, by name.
            decisive: the settings that are part of its identity (`mtmh.config.decisive`); ``None``: all of ``config``.
            records: of files that their writers have read already, by name in the folder; all others are read here.
        """
        names = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())
        manifest = Manifest(
            kind=self.kind,
            format_version=FORMAT_VERSION,
            mtmh_version=__version__,
            code=code_of(self.kind),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            config=dict(config),
            decisive=dict(config if decisive is None else decisive),
            inputs={name: artifact.manifest.digest for name, artifact in inputs.items()},
            summary=self.summary,
            files={name: (records or {}).get(name) or FileRecord.of(self.folder / name) for name in names},
        )
        tree = sealed(json.loads(manifest.model_dump_json()))
        (self.folder / MANIFEST).write_text(json.dumps(tree, indent=2))
        return self.adopt()

    def adopt(self) -> Artifact:
        """Moves the folder to its final name with the manifest that lies in it, such as that of a copied artifact.

        Raises:
            ValueError: as `open_artifact`.
        """
        manifest = open_artifact(self.folder, self.kind).manifest
        for folder, _, files in os.walk(self.folder):
            for file in files:
                fsync(Path(folder, file))
            fsync(Path(folder))
        _swap(self.folder, self.path)
        return Artifact(self.path, manifest)


@contextmanager
def write_artifact(
    path: Path,
    kind: Kind,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact] | None = None,
    decisive: Mapping[str, Any] | None = None,
) -> Iterator[ArtifactWriter]:
    """Writes an artifact from one process; nothing appears at ``path`` if the block raises.

    ``config``, ``inputs``, ``decisive``: as `ArtifactWriter.commit` takes them.

    Raises:
        ValueError: ``path`` holds something else than an artifact of this kind, or another process is writing there.

    Example:
        >>> with write_artifact(Path("runs/x/content"), "content", config={}) as writer:  # doctest: +SKIP
        ...     np.save(writer.folder / "embeddings.npy", embeddings)
        ...     writer.summary["num_items"] = len(embeddings)
    """
    with sole_writer(path):
        writer = ArtifactWriter(path, kind)
        writer.begin()
        try:
            yield writer
            writer.commit(config, inputs or {}, decisive=decisive)
        except OSError as error:
            say_where(error, writer.folder)
            raise
        finally:
            shutil.rmtree(writer.folder, ignore_errors=True)


def say_where(error: OSError, folder: Path) -> None:
    """Notes the folder in an error of writing, which does not tell where; NumPy's does not even tell why."""
    if error.errno is None and " requested and " in str(error):  # so many values, and fewer written
        error.errno, error.strerror = errno.ENOSPC, str(error)
    if error.errno is not None:
        error.filename = error.filename or str(folder)


def open_artifact(path: Path, kind: Kind, *, sizes: bool = True) -> Artifact:
    """Opens an artifact and checks its manifest, and that every file is there in its recorded size.

    Args:
        path: its folder.
        kind: that it must be of.
        sizes: with ``False`` the files are not looked at, for who repairs them.

    Raises:
        DamagedArtifactError: the manifest or a file is missing, truncated or altered.
        OtherFormatError: another format.
        ValueError: another kind, or a manifest with other fields than this mtmh knows.
    """
    manifest_path = path / MANIFEST
    if not path.exists() and _old(path).exists():
        with suppress(ValueError, OSError), sole_writer(path):  # at work, or not ours to write
            _restore(path)
    if not manifest_path.is_file():
        raise DamagedArtifactError(f"{path}: no {kind} artifact here (no {MANIFEST}); run {WRITTEN_BY[kind]} first")
    manifest = _read_manifest(manifest_path)
    if manifest.kind != kind:
        raise ValueError(f"{path}: expected a {kind} artifact, found a {manifest.kind} artifact")
    for name, record in manifest.files.items() if sizes else ():
        _check_size(path / name, record)
    return Artifact(path, manifest)


def manifest_bytes(folder: Path) -> bytes:
    """The content of the manifest in a folder.

    Raises:
        ValueError: there is none.
    """
    try:
        return (folder / MANIFEST).read_bytes()
    except OSError:
        raise ValueError(f"{folder}: no artifact here (no {MANIFEST})") from None


def kind_of(manifest: bytes, where: str) -> Kind:
    """The kind that a manifest's content names.

    Raises:
        ValueError: it is no manifest, or of a kind that this mtmh does not know.
    """
    with suppress(ValueError):
        tree = json.loads(manifest)
        if isinstance(tree, dict) and tree.get("kind") in WRITTEN_BY:
            kind: Kind = tree["kind"]
            return kind
    raise ValueError(f"{where}: not a manifest of an artifact that this mtmh knows")


def code_of(kind: Kind) -> str:
    """Digest of the code of this mtmh that makes artifacts of a kind."""
    return code_digest(*_MADE_BY[kind])


def link_folder(source: Path, target: Path) -> None:
    """Puts the files of a folder of one artifact into another without a copy where the file system allows it.

    Files of artifacts never change, so that sharing them is safe. A source that is not there leaves nothing.
    """
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link_file)


def link_file(source: str | Path, target: str | Path) -> None:
    """Puts a file of one artifact into another, as `link_folder` does."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def sealed(tree: dict[str, Any]) -> dict[str, Any]:
    """The fields of a manifest with the digest of all of them, by which an edited or damaged one is noticed."""
    fields = {name: value for name, value in tree.items() if name != "sha256"}
    return {**fields, "sha256": hashlib.sha256(_canonical_json(fields)).hexdigest()}


def _canonical_json(tree: Any) -> bytes:
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()


def _read_json(manifest: Path) -> Any:
    try:
        return json.loads(manifest.read_bytes())
    except FileNotFoundError:
        raise DamagedArtifactError(f"{manifest}: gone") from None
    except ValueError as error:
        raise DamagedArtifactError(f"{manifest}: not a valid manifest: {error}") from None


def _read_manifest(path: Path) -> Manifest:
    tree = _read_json(path)
    # Looked at before the other fields, which another format is free to name as it likes.
    if isinstance(tree, dict) and tree.get("format_version") not in (None, FORMAT_VERSION):
        raise OtherFormatError(
            f"{path.parent}: format version {tree['format_version']}, this mtmh reads {FORMAT_VERSION}; read it with "
            f"the mtmh that wrote it, or write it anew"
        )
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path}: not a manifest that this mtmh knows: {field}: {first['msg']}") from None
    if manifest.sha256 and manifest.sha256 != sealed(tree)["sha256"]:
        raise DamagedArtifactError(f"{path}: altered since it was written (its own SHA-256 differs)")
    return manifest


def _check_size(path: Path, record: FileRecord) -> None:
    try:
        size = path.stat().st_size if path.is_file() else None
    except FileNotFoundError:  # between the two questions
        size = None
    if size is None:
        raise DamagedArtifactError(f"{path}: missing, although the manifest lists it")
    if size != record.bytes:
        raise DamagedArtifactError(f"{path}: {size} bytes, the manifest says {record.bytes}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_foreign(path: Path, kind: Kind) -> None:
    """An existing folder is only replaced when it is an artifact of the same kind."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path}: exists and is no {kind} artifact; choose another folder or remove it")
    # The kind alone: what another format may be named beside it does not matter to who replaces it.
    tree = _read_json(path / MANIFEST)
    found = tree.get("kind") if isinstance(tree, dict) else None
    if found != kind:
        raise ValueError(f"{path}: holds a {found} artifact, not a {kind} artifact; choose another folder")


def _swap(new: Path, final: Path) -> None:
    """Renames ``new`` to ``final``; an older artifact there steps aside first and is deleted last."""
    old = _old(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.replace(old)
    new.replace(final)
    fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _restore(path: Path) -> None:
    """Puts back the artifact that a writer has left aside which was killed between the two renames of `_swap`."""
    if not path.exists() and (_old(path) / MANIFEST).is_file():
        _old(path).rename(path)


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file: after a crash at any moment it holds the old text or the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.write_text(text)
    fsync(aside)
    aside.replace(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
