"""The reason why a process failed: its own last line, or the signal that ended it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mtmh.errors import last_words


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('one'); print('error: two'); raise SystemExit(2)", "error: two"),
        ("raise SystemExit(2)", "no output"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, as the system does where memory is short"),
        ("import os; os.kill(os.getpid(), 15)", "killed by SIGTERM"),
    ],
)
def test_the_last_words_of_a_process(program: str, words: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("w") as file:
        done = subprocess.run([sys.executable, "-S", "-c", program], stdout=file, stderr=file, check=False)
    assert last_words(done.returncode, log) == words
