"""A verb of the command line in a process of its own, forked from one that has imported what takes seconds.

What a process must import itself, and the warnings of that, are for ``python -m mtmh.cli``.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory

from mtmh.cli import main

PATIENCE = 240  # seconds, for a machine that is busy with other things


def forked_verb(*words: str, folder: Path = Path(), environment: Mapping[str, str] = {}) -> CompletedProcess[str]:
    """Runs ``mtmh WORDS`` in a folder; a process that does not end is an AssertionError."""
    with TemporaryDirectory() as written:
        outputs = [Path(written, name) for name in ("stdout", "stderr")]
        process = _forked(words, folder, os.environ | environment, *outputs)
        process.join(PATIENCE)
        code = process.exitcode
        if code is None:
            process.kill()
        stdout, stderr = (path.read_text() for path in outputs)
    assert code is not None, f"mtmh {' '.join(words)} does not end: {stdout}{stderr}"
    return CompletedProcess(["mtmh", *words], code, stdout, stderr)


class ForkedVerb:
    """A process of ``mtmh WORDS`` that goes on, with the part of `subprocess.Popen` that a service needs.

    Args:
        words: of the command.
        environment: all of it.
        stderr: file for what it says there.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], stderr: Path) -> None:
        reading, writing = mp.Pipe(duplex=False)
        self._process = _forked(words, Path(), environment, writing, stderr)
        writing.close()
        with reading:
            self.stdout = os.fdopen(os.dup(reading.fileno()))
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code; None: it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """The exit code, when it has ended; TimeoutExpired: it has not."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutExpired("mtmh", timeout)
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        """As `os.kill`."""
        os.kill(self.pid, sig)


def _forked(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], *outputs: Path | Connection
) -> BaseProcess:
    process = mp.get_context("forkserver").Process(
        target=_run, args=(words, str(folder.absolute()), dict(environment), outputs)
    )
    process.start()
    return process


def _run(
    words: Sequence[str], folder: str, environment: dict[str, str], outputs: tuple[Path | Connection, ...]
) -> None:
    for number, output in enumerate(outputs, 1):
        with output.open("w") if isinstance(output, Path) else output as opened:
            os.dup2(opened.fileno(), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["mtmh", *words]
    main()
