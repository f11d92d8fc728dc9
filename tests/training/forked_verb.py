"""A verb of the command line in a process of its own, forked from one that has imported what takes seconds.

What a process must import itself, and the warnings of that, are for ``python -m mtmh.cli``.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from mtmh.cli import main

PATIENCE = 240  # seconds, for a machine that is busy with other things


def forked_verb(*words: str, folder: Path = Path(), environment: Mapping[str, str] = {}) -> CompletedProcess[str]:
    """Runs ``mtmh WORDS`` in a folder; a process that does not end is an AssertionError."""
    with TemporaryDirectory() as written:
        outputs = [str(Path(written, name)) for name in ("stdout", "stderr")]
        process = mp.get_context("forkserver").Process(
            target=_run, args=(words, str(folder.absolute()), dict(environment), outputs)
        )
        process.start()
        process.join(PATIENCE)
        code = process.exitcode
        if code is None:
            process.kill()
        stdout, stderr = (Path(path).read_text() for path in outputs)
    assert code is not None, f"mtmh {' '.join(words)} does not end: {stdout}{stderr}"
    return CompletedProcess(["mtmh", *words], code, stdout, stderr)


def _run(words: tuple[str, ...], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ |= environment
    sys.argv = ["mtmh", *words]
    main()
