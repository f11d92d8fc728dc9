"""Artifacts to and from object storage, whole or not at all.

    URL/CURRENT                 the version that is published there, and the ones before it
    URL/3f2a90c1d4e5b677/       an artifact folder, named by the digest of its manifest; the manifest is written last

A version never changes, and ``CURRENT`` names it when it is complete: whoever pulls finds a whole one at every moment,
and a push that is killed leaves the one before. The URL of a version's own folder can be pulled as well.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtmh.artifacts import (
    MANIFEST,
    Artifact,
    ArtifactWriter,
    DamagedArtifactError,
    FileRecord,
    kind_of,
    manifest_bytes,
    open_artifact,
    say_where,
)
from mtmh.places import AnyPath, RemotePath
from mtmh.signing import SIGNATURE, verify_signed
from mtmh.sole_writer import sole_writer

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

POINTER = "CURRENT"
FILES_AT_ONCE = 8
PIECE = 8 << 20  # bytes
LARGEST_MANIFEST = 256 << 20  # bytes

_Name = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_T = TypeVar("_T")


class Published(BaseModel):
    """The content of ``CURRENT``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: _Name
    before: list[_Name] = []  # the latest first


@dataclass(frozen=True)
class _Folder:
    """A folder of a file system.

    Attributes:
        filesystem: of the two.
        path: of the folder on it.
        title: in messages.
    """

    filesystem: FileSystem
    path: str
    title: str

    @classmethod
    def at(cls, place: AnyPath) -> _Folder:
        from pyarrow.fs import LocalFileSystem

        if isinstance(place, RemotePath):
            return cls(place.filesystem, place.path, place.url)
        return cls(LocalFileSystem(), str(place.absolute()), str(place))

    def __truediv__(self, name: str) -> _Folder:
        return _Folder(self.filesystem, f"{self.path}/{name}", f"{self.title}/{name}")

    def read(self, name: str) -> bytes | None:
        """A small file; ``None``: there is none."""
        file = f"{self.path}/{name}"
        if not self.filesystem.get_file_info(file).is_file:
            return None
        with self.filesystem.open_input_stream(file) as stream:
            content: bytes = stream.read(LARGEST_MANIFEST)
        return content

    def write(self, name: str, pieces: Iterable[bytes]) -> None:
        """A file, below folders that may not be there."""
        file = f"{self.path}/{name}"
        if self.filesystem.type_name in ("local", "hdfs"):  # elsewhere there are no folders
            self.filesystem.create_dir(file.rpartition("/")[0], recursive=True)
        with self.filesystem.open_output_stream(file) as stream:
            for piece in pieces:
                stream.write(piece)

    def replace(self, name: str, content: bytes) -> None:
        """A small file, in one step."""
        self.write(f"{name}.partial", [content])
        self.filesystem.move(f"{self.path}/{name}.partial", f"{self.path}/{name}")


def push(folder: Path, to: AnyPath, *, keep: int = 3) -> str:
    """Copies an artifact to object storage and publishes it there; every file is compared with its digest on the way.

    A version that is there already is published without another copy.

    Args:
        folder: of the artifact.
        to: where its versions lie.
        keep: published versions that stay there, this one included.

    Returns:
        The name of the version.

    Raises:
        ValueError: no whole artifact, or the place cannot be written.
    """
    content = manifest_bytes(folder)
    artifact = open_artifact(folder, kind_of(content, str(folder / MANIFEST)))
    name, there = _name(content), _Folder.at(to)
    version = there / name
    with _reached(there):
        if version.read(MANIFEST) != content:
            files = artifact.manifest.files
            _for_each(lambda item: _upload(folder / item[0], item[1], version, item[0]), files.items())
            _check_sizes(version, files.items())
        if (folder / SIGNATURE).is_file():
            version.write(SIGNATURE, [(folder / SIGNATURE).read_bytes()])
        version.write(MANIFEST, [content])
        before = _read_pointer(there)
        earlier = [] if before is None else [before.version, *before.before]
        earlier = [other for other in earlier if other != name]
        pointer = Published(version=name, before=earlier[: keep - 1])
        there.replace(POINTER, pointer.model_dump_json().encode())
        for other in earlier[keep - 1 :]:
            there.filesystem.delete_dir((there / other).path)
    return name


def pull(source: AnyPath, folder: Path, *, trusted_key: Path | None = None) -> tuple[Artifact, bool]:
    """Copies the published artifact from object storage, or the one whose folder is named; nothing if it is there.

    Args:
        source: where versions lie, or the folder of one.
        folder: of the artifact; an older one of its kind is replaced when the new one is whole.
        trusted_key: file of a public key that must have signed it; ``None``: it need not be signed.

    Returns:
        The artifact, and whether it is new in ``folder``.

    Raises:
        SignatureError: not signed with the trusted key.
        ValueError: nothing is published there, or a file is not what the manifest says; ``folder`` is as it was.
    """
    with _reached(_Folder.at(source)):
        version, content = _published(_Folder.at(source))
        kind = kind_of(content, f"{version.title}/{MANIFEST}")
        if (folder / MANIFEST).is_file() and (folder / MANIFEST).read_bytes() == content:
            return open_artifact(folder, kind), False
        with sole_writer(folder):
            writer = ArtifactWriter(folder, kind)
            writer.begin()
            try:
                signature = version.read(SIGNATURE)
                for name, small in ((MANIFEST, content), (SIGNATURE, signature)):
                    if small is not None:
                        (writer.folder / name).write_bytes(small)
                manifest = open_artifact(writer.folder, kind, sizes=False).manifest
                _for_each(lambda item: _download(version, item[0], item[1], writer.folder), manifest.files.items())
                if trusted_key is not None:
                    verify_signed(writer.folder, trusted_key)
                return writer.adopt(), True
            except OSError as error:
                say_where(error, writer.folder)
                raise
            finally:
                shutil.rmtree(writer.folder, ignore_errors=True)


def published_manifest(source: AnyPath) -> bytes:
    """The content of the manifest of the artifact that `pull` would copy.

    Raises:
        ValueError: nothing is published there.
    """
    with _reached(_Folder.at(source)):
        return _published(_Folder.at(source))[1]


@contextmanager
def _reached(there: _Folder) -> Iterator[None]:
    """Names the place in errors of the store; those of the local disk have a number of their own."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError(f"{there.title}: {error}") from error


def _published(there: _Folder) -> tuple[_Folder, bytes]:
    pointer = None
    content = there.read(MANIFEST)
    if content is None:
        pointer = _read_pointer(there)
        content = None if pointer is None else (there / pointer.version).read(MANIFEST)
    if content is None:
        raise ValueError(f"{there.title}: no artifact is published here; mtmh artifact push publishes one")
    if pointer is None:
        return there, content
    if _name(content) != pointer.version:
        raise DamagedArtifactError(f"{there.title}/{pointer.version}/{MANIFEST}: altered since it was pushed")
    return there / pointer.version, content


def _read_pointer(there: _Folder) -> Published | None:
    content = there.read(POINTER)
    if content is None:
        return None
    try:
        return Published.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{there.title}/{POINTER}: not readable: {error.errors()[0]['msg']}") from None


def _upload(file: Path, record: FileRecord, version: _Folder, name: str) -> None:
    with file.open("rb") as source:
        version.write(name, _pieces(source, record, str(file)))


def _check_sizes(version: _Folder, files: Iterable[tuple[str, FileRecord]]) -> None:
    for name, record in files:
        info = version.filesystem.get_file_info(f"{version.path}/{name}")
        if not info.is_file or info.size != record.bytes:
            raise OSError(f"{version.title}/{name}: {info.size} bytes arrived of {record.bytes}")


def _download(version: _Folder, name: str, record: FileRecord, folder: Path) -> None:
    title = f"{version.title}/{name}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    try:
        source = version.filesystem.open_input_stream(f"{version.path}/{name}")
    except FileNotFoundError:
        raise DamagedArtifactError(f"{title}: missing, although the manifest lists it") from None
    with source, (folder / name).open("wb") as file:
        file.writelines(_pieces(source, record, title))


def _pieces(source: BinaryIO | NativeFile, record: FileRecord, title: str) -> Iterator[bytes]:
    """The content of a file, which is compared with its record on the way.

    Raises:
        DamagedArtifactError: behind the last piece, size or SHA-256 differ; nothing beyond the size is read.
    """
    digest, size = hashlib.sha256(), 0
    while size <= record.bytes and (piece := source.read(PIECE)):
        size += len(piece)
        digest.update(piece)
        yield piece
    if size != record.bytes:
        more = " or more" if size > record.bytes else ""
        raise DamagedArtifactError(f"{title}: {size} bytes{more}, the manifest says {record.bytes}")
    if digest.hexdigest() != record.sha256:
        raise DamagedArtifactError(f"{title}: altered since it was written (SHA-256 differs)")


def _for_each(function: Callable[[_T], None], items: Iterable[_T]) -> None:
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        work = [threads.submit(function, item) for item in items]
        try:
            for done in work:
                done.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _name(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:16]
