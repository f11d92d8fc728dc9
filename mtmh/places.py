"""Places of tables and artifacts outside the local disk: URLs of object storage, and tables of a lake.

    s3://BUCKET/KEY   gs://BUCKET/KEY   abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY   hdfs://HOST:PORT/PATH

pyarrow reads and writes them. Credentials, region and endpoint come from the environment, as the tools of each store
have them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AZURE_STORAGE_KEY, STORAGE_EMULATOR_HOST, ...). A key is taken as it is
written: nothing in it is an escape.
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, TypeAlias, cast
from urllib.parse import SplitResult, quote, urlsplit

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileInfo, FileSystem

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
READ_AHEAD = 1 << 20  # bytes: a request for each small read would take most of the time

_GOOGLE_PATIENCE = 30  # seconds of trying again; pyarrow's own is 15 minutes, also where there is no credential
_AZURE_LOGINS = ("AZURE_CLIENT_ID", "AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_ENDPOINT", "MSI_ENDPOINT")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(.*)", re.DOTALL)
_LAKE = re.compile(r"(delta|iceberg):(.+?)(?:@(\d+))?", re.DOTALL)


@dataclass(frozen=True)
class RemotePath:
    """A file or folder that a URL names; it has the parts of ``pathlib.Path`` that readers of tables need.

    Attributes:
        url: without a slash at its end.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | PurePath) -> RemotePath:
        return RemotePath(f"{self.url}/{name}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The names on the way, as ``Path`` has them."""
        return PurePosixPath(self.url).parts

    @property
    def name(self) -> str:
        """The last of the names."""
        return PurePosixPath(self.url).name

    @property
    def suffixes(self) -> list[str]:
        """The ends of the name, each with its dot."""
        return PurePosixPath(self.url).suffixes

    @property
    def filesystem(self) -> FileSystem:
        """Where it lies."""
        return self._place[0]

    @property
    def path(self) -> str:
        """The path on ``filesystem``."""
        return self._place[1]

    @property
    def _place(self) -> tuple[FileSystem, str]:
        match = _URL.fullmatch(self.url)
        assert match is not None
        filesystem, above = _root(match[1], match[2])
        return filesystem, f"{above.rstrip('/')}{match[3]}" if above else match[3].lstrip("/")

    def info(self) -> FileInfo:
        """Kind, size and time of change.

        Raises:
            OSError: the store cannot be reached, or refuses.
        """
        with _store_errors():
            return self.filesystem.get_file_info(self.path)

    def is_file(self) -> bool:
        """True if there is a file of this name."""
        return bool(self.info().is_file)

    def is_dir(self) -> bool:
        """True if there is a folder of this name, or files below it."""
        from pyarrow.fs import FileType

        return bool(self.info().type == FileType.Directory)

    def open(self) -> BinaryIO:
        """The file for reading at any place, in pieces of at least `READ_AHEAD`."""
        file = self.filesystem.open_input_file(self.path)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, file), READ_AHEAD))

    def stream(self) -> NativeFile:
        """The file from its beginning, unpacked as its name says."""
        return self.filesystem.open_input_stream(self.path, compression="detect")

    def files(self) -> list[FileInfo]:
        """All files below it, in the order of their names."""
        from pyarrow.fs import FileSelector

        with _store_errors():
            found = self.filesystem.get_file_info(FileSelector(self.path, recursive=True, allow_not_found=True))
        return sorted((info for info in found if info.is_file), key=lambda info: str(info.path))

    def glob(self, pattern: str) -> list[RemotePath]:
        """The files below it that a shell's pattern names, in the order of their names; hidden ones as in a shell.

        All that lies below the names in front of the first pattern is listed: a store of objects has no folders that
        could be walked.
        """
        first, _, rest = pattern.partition("/")
        if first and rest and not glob.has_magic(first):
            return (self / first).glob(rest)
        from fsspec.utils import glob_translate

        fits, hidden = re.compile(glob_translate(pattern)), "/." in f"/{pattern}"
        names = [str(info.path).removeprefix(self.path).lstrip("/") for info in self.files()]
        return [self / name for name in names if fits.match(name) and (hidden or "/." not in f"/{name}")]


@dataclass(frozen=True)
class LakeTable:
    """A table of a lake: ``delta:PLACE``, ``iceberg:CATALOG.TABLE`` or ``iceberg:PLACE``; ``@NUMBER`` pins it.

    Attributes:
        format: of its metadata.
        place: path, URL, or name in a catalogue.
        version: of a Delta table, or the snapshot of an Iceberg table; ``None``: what is there when it is read.
    """

    format: Literal["delta", "iceberg"]
    place: str
    version: int | None = None

    def __str__(self) -> str:
        return f"{self.format}:{self.place}" + ("" if self.version is None else f"@{self.version}")


AnyPath: TypeAlias = Path | RemotePath


def any_path(value: Any) -> AnyPath:
    """A path, or what a URL names; ``file://`` is a path.

    Raises:
        ValueError: a URL that pyarrow does not know.
    """
    if isinstance(value, Path | RemotePath):
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected a path or a URL, got {value!r}")
    match = _URL.fullmatch(value)
    if match is None:
        return Path(value)
    scheme, authority, key = match[1].lower(), match[2], match[3]
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise ValueError(f"{value!r}: a file of another machine; expected file:///PATH")
        return Path(key)
    if scheme not in SCHEMES:
        raise ValueError(f"{value!r}: unknown kind of place; expected a path or {', '.join(SCHEMES)} or file://...")
    if not authority and scheme != "hdfs":
        raise ValueError(f"{value!r}: no bucket; expected {scheme}://BUCKET/KEY")
    return RemotePath(value.rstrip("/"))


def any_table(value: Any) -> AnyPath | LakeTable:
    """A file, a pattern of files, or a table of a lake.

    Raises:
        ValueError: as `any_path`.
    """
    match = _LAKE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value if isinstance(value, LakeTable) else any_path(value)
    return LakeTable(cast(Literal["delta", "iceberg"], match[1]), match[2], int(match[3]) if match[3] else None)


_AS_TEXT = (PlainSerializer(str, return_type=str), WithJsonSchema({"type": "string", "format": "path"}))
PathOrUrl: TypeAlias = Annotated[Path | RemotePath, PlainValidator(any_path), *_AS_TEXT]
TablePlace: TypeAlias = Annotated[Path | RemotePath | LakeTable, PlainValidator(any_table), *_AS_TEXT]


def size_of(file: AnyPath) -> int | None:
    """Bytes of a file; ``None``: there is none.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    if isinstance(file, RemotePath):
        info = file.info()
        return int(info.size) if info.is_file else None
    return file.stat().st_size if file.is_file() else None


def find_files(folder: AnyPath | None, pattern: AnyPath) -> list[AnyPath]:
    """Files of a pattern that is seen from a folder, in the order of their names; a file's own name is no pattern.

    Raises:
        OSError: the store cannot be reached, or refuses.
    """
    if isinstance(pattern, RemotePath):
        if pattern.is_file():
            return [pattern]
        # What is in front of the first pattern is a place.
        plain, rest = pattern.url, ""
        while glob.has_magic(plain):
            plain, _, name = plain.rpartition("/")
            rest = f"{name}/{rest}" if rest else name
        return list(RemotePath(plain).glob(rest)) if rest else []
    if isinstance(folder, RemotePath) and not pattern.is_absolute():
        return [folder / str(pattern)] if (folder / str(pattern)).is_file() else list(folder.glob(str(pattern)))
    base = Path() if folder is None or isinstance(folder, RemotePath) else folder
    if (base / pattern).is_file():
        return [base / pattern]
    names = glob.glob(str(pattern), root_dir=base, recursive=True)  # noqa: PTH207 - root_dir is no pattern
    return [*sorted(base / name for name in names if (base / name).is_file())]


@contextmanager
def _store_errors() -> Iterator[None]:
    """Makes an error of pyarrow that is of no other kind one of input and output."""
    from pyarrow.lib import ArrowException

    try:
        yield
    except ArrowException as error:
        raise OSError(str(error)) from error


@cache
def _root(scheme: str, authority: str) -> tuple[FileSystem, str]:
    """The store, and the path of the bucket on it.

    Raises:
        OSError: its libraries are missing, or the environment says nothing of an account.
    """
    from pyarrow.fs import FileSystem

    if scheme in ("abfs", "abfss"):
        return _azure(scheme, authority)
    url = f"{scheme}://{authority}" + ("/" if scheme == "hdfs" else "")
    if scheme in ("gs", "gcs"):
        url, emulator = f"gs://{authority}/?retry_limit_seconds={_GOOGLE_PATIENCE}", _endpoint("STORAGE_EMULATOR_HOST")
        if emulator is not None:
            url = url.replace("//", "//anonymous@", 1)
            url += f"&scheme={emulator.scheme}&endpoint_override={quote(emulator.netloc, safe='')}"
    found: tuple[FileSystem, str] = FileSystem.from_uri(url)
    return found


def _azure(scheme: str, authority: str) -> tuple[FileSystem, str]:
    """As `_root`; without a credential pyarrow would end the process, so what names one is looked for beforehand."""
    from pyarrow.fs import AzureFileSystem, FileSystem

    container, _, host = authority.partition("@")
    words = os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
    found = dict(word.split("=", 1) for word in words.split(";") if "=" in word)
    key, account = found.get("AccountKey") or os.environ.get("AZURE_STORAGE_KEY"), found.get("AccountName")
    if account and host.endswith(".windows.net") and account != host.split(".")[0]:
        raise OSError(f"AZURE_STORAGE_CONNECTION_STRING is of the account {account}, the URL names {host}")
    if key:
        account = account or host.split(".")[0]
        blobs = urlsplit(found.get("BlobEndpoint", ""))
        # An emulator has the account in the path; where it is in the name of the host, pyarrow puts it there itself.
        place = blobs.netloc.removeprefix(account) if blobs.netloc.startswith(f"{account}.") else blobs.netloc
        at = {
            f"{part}_storage_{name}": value
            for part in ("blob", "dfs")
            for name, value in (("authority", place.replace(".blob.", f".{part}.")), ("scheme", blobs.scheme))
            if value
        }
        return AzureFileSystem(account, account_key=key, **at), container
    if not (any(os.environ.get(name) for name in _AZURE_LOGINS) or Path("~/.azure").expanduser().is_dir()):
        raise OSError(
            "nothing says who asks: set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY (the account's key) or "
            f"{', '.join(_AZURE_LOGINS)}, or log in with `az login`"
        )
    filesystem, _ = FileSystem.from_uri(f"{scheme}://{authority}")
    return filesystem, container


def _endpoint(variable: str) -> SplitResult | None:
    value = os.environ.get(variable, "")
    return urlsplit(value if "://" in value else f"http://{value}") if value else None
