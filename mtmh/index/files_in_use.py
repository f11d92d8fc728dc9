"""The mapped files of an index version in use: whether someone has cut one of them off, and when anyone may."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

from mtmh.artifacts import Artifact, DamagedArtifactError

_MAPPED = (".faiss", ".lists", ".npy", ".arrow", ".safetensors")
_PATIENCE = 30.0  # for readers, in seconds: Linux makes a writer wait for 45 at most
_LOOK = 0.005
_HEAD_START = 0.1  # of a writer that has waited, before the files are looked at again


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
        self._is_held = self._gives_way = False
        weakref.finalize(self, _close, [descriptor for descriptor, _ in self._files.values()])

    def hold(self) -> None:
        """Makes who would write or cut off a file wait until `give_way`, of which SIGIO asks; needs a handler for it.

        By leases of Linux: on a local file system, of files that the process owns (or with CAP_LEASE). Elsewhere, and
        for files that are not whole, nothing is held.
        """
        if self._is_held or self._gives_way or not hasattr(fcntl, "F_SETLEASE") or not self.are_whole:
            return
        try:
            for descriptor, _ in self._files.values():
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            self._is_held = True
        except OSError:
            self.release()

    def give_way(self, idle: Callable[[], bool]) -> None:
        """Lets writers at the files once nobody reads them; meanwhile `check` refuses.

        Args:
            idle: whether nobody reads who was let through by `check`.
        """
        self._gives_way = True
        try:
            end = time.monotonic() + _PATIENCE
            while not idle() and time.monotonic() < end:
                time.sleep(_LOOK)
            self.release()
            time.sleep(_HEAD_START)
        finally:
            self._gives_way = False

    def release(self) -> None:
        """Holds nothing any more."""
        self._is_held = False
        for descriptor, _ in self._files.values():
            with suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    def check(self) -> None:
        """Takes some microseconds, so that it may precede every question.

        Raises:
            DamagedArtifactError: a file is shorter than it was, or someone is about to write it.
        """
        if self._gives_way:
            raise DamagedArtifactError(f"{self._path}: a file is being written while it is in use")
        self._compare()

    def _compare(self) -> None:
        for name, (descriptor, size) in self._files.items():
            now = os.fstat(descriptor).st_size
            if now < size:
                raise DamagedArtifactError(
                    f"{self._path / name}: cut off while it is in use, {now} of {size} bytes are left; bring the"
                    " version back, or publish another one"
                )

    @property
    def are_whole(self) -> bool:
        """True if no file is shorter than it was."""
        try:
            self._compare()
        except DamagedArtifactError:
            return False
        return True


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
