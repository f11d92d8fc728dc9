"""Forged files: payloads that leave a mark if anything runs them, and manifests whose digests fit again."""

import json
import pickle
from pathlib import Path

from mtmh.artifacts import MANIFEST, FileRecord, sealed


def dotted_pickle(mark: Path) -> bytes:
    """A pickle of protocol 4 whose only global is below a harmless class; reading it makes the file ``mark``."""

    def text(value: str) -> bytes:
        return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()

    get = text("torch.distributed.checkpoint.metadata") + text("Metadata.__init__.__builtins__.get") + b"\x93"
    evaluate = get + text("eval") + b"\x85R"
    return b"\x80\x04" + evaluate + text(code(mark)) + b"\x85R."


def plain_pickle(mark: Path) -> bytes:
    """A pickle that calls eval."""
    return pickle.dumps(_Calls(mark))


def code(mark: Path) -> str:
    """A Python expression that makes the file ``mark``."""
    return f"__import__('pathlib').Path({str(mark)!r}).touch()"


def fit_manifest(folder: Path) -> None:
    """Writes sizes and digests of the files as they are now into the manifest, as whoever writes the folder can."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    files = [file for file in folder.rglob("*") if file.is_file() and file != path]
    manifest["files"] = {str(file.relative_to(folder)): FileRecord.of(file).model_dump() for file in files}
    path.write_text(json.dumps(sealed(manifest)))


class _Calls:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return eval, (code(self._mark),)
