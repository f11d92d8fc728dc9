"""Lock of a folder that a stage is writing: a second one on the same folder is told who is at work."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system that has none: as before there were any


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Holds a lock beside a folder, against other processes, also of other hosts; a killed holder lets go by itself.

    Raises:
        ValueError: another process holds it; the message has its host and process id.
    """
    path = folder.with_name(f".{folder.name}.lock")
    made = [above for above in path.parents if not above.exists()]
    descriptor = _locked(path, folder)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"host {socket.gethostname()}, process {os.getpid()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        with suppress(OSError):  # whatever was refused leaves nothing behind; a folder that holds something stays
            for above in made:
                above.rmdir()


def _locked(path: Path, folder: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another that has written nothing has just removed the folder
            continue
        try:
            # Of the process, not of the file: children that outlive a killed one do not hold it.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:  # its holder has just removed it
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            if error.errno not in _TAKEN:
                raise
            raise ValueError(f"{folder}: being written by {holder}; wait for it, or choose another folder") from None
        os.close(descriptor)
