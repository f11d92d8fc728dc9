"""The index as it is now: the published version of a folder, and how a new one is taken into use."""

from __future__ import annotations

from pathlib import Path

from mtmh.artifacts import open_artifact
from mtmh.index.versions import current_version
from mtmh.serving.retriever import Retriever


class LiveIndex:
    """Follows the published version of an index folder.

    Args:
        index_dir: versioned folder of the index.

    Attributes:
        retriever: over the version in use; one reference, to be read once a request.

    Raises:
        ValueError: no version that could be used.
    """

    def __init__(self, index_dir: Path) -> None:
        self._index_dir = index_dir
        self._version = current_version(index_dir)
        self.retriever = _open(self._version)

    def refresh(self) -> bool:
        """Takes a newly published version into use, if there is one; whether it did.

        Raises:
            ValueError: the new version is damaged; the old one stays.
        """
        version = current_version(self._index_dir)
        if version == self._version:
            return False
        self.retriever = _open(version)
        self._version = version
        return True


def _open(version: Path) -> Retriever:
    open_artifact(version, "index").verify()
    return Retriever.load(version)
