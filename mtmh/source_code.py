"""Which code this is: a digest of the package's source files, written into every manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# They may lie elsewhere than the package's folder, as in a checkout.
_PACKAGES = ("mtmh", "mtmh.modules", "mtmh.torchx_apps")


@cache
def code_digest() -> str:
    """SHA-256 over names and contents of all Python files of mtmh, the same in a checkout and installed."""
    folders: dict[str, Path] = {}
    for name in _PACKAGES:
        spec = find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec is not None else []:
            folders.setdefault(name.replace(".", "/"), Path(folder))
    return digest_of(folders)


def digest_of(folders: Mapping[str, Path]) -> str:
    """SHA-256 over the Python files below some folders, named by the folder's key and the path in it."""
    files = {
        f"{key}/{path.relative_to(root).as_posix()}": path
        for key, root in folders.items()
        for path in root.rglob("*.py")
    }
    digest = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\n".encode() + content)
    return digest.hexdigest()
