"""The mapped files of an index version in use: whether someone has cut one of them off."""

from __future__ import annotations

import os
import weakref

from mtmh.artifacts import Artifact, DamagedArtifactError

_MAPPED = (".faiss", ".lists", ".npy", ".safetensors")


class FilesInUse:
    """Holds the files of a version open and compares their sizes; reading a map past the end of its file is fatal.

    Args:
        artifact: the version, whole.
    """

    def __init__(self, artifact: Artifact) -> None:
        mapped = {name: file.bytes for name, file in artifact.manifest.files.items() if name.endswith(_MAPPED)}
        self._path = artifact.path
        # By descriptor: the version may have been removed, and is in use until the next one is there.
        self._files = {name: (os.open(self._path / name, os.O_RDONLY), size) for name, size in mapped.items()}
        weakref.finalize(self, _close, [descriptor for descriptor, _ in self._files.values()])

    def check(self) -> None:
        """Takes some microseconds, so that it may precede every question.

        Raises:
            DamagedArtifactError: a file is shorter than it was.
        """
        for name, (descriptor, size) in self._files.items():
            now = os.fstat(descriptor).st_size
            if now < size:
                raise DamagedArtifactError(
                    f"{self._path / name}: cut off while it is in use, {now} of {size} bytes are left; bring the"
                    " version back, or publish another one"
                )

    @property
    def are_whole(self) -> bool:
        """True if `check` finds nothing."""
        try:
            self.check()
        except DamagedArtifactError:
            return False
        return True


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
