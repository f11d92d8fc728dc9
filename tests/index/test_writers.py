"""Remains of a killed process in an index folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtmh.index.writers import scratch_folder, writing

OWNER = """
import sys, time
from pathlib import Path
from mtmh.index.writers import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "vectors.npy").write_text("much")
    print(folder, flush=True)
    time.sleep(600)
"""


def scratch_of(index_dir: Path) -> list[Path]:
    return list(index_dir.glob(".compact-*"))


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        with writing(tmp_path):
            assert scratch_of(tmp_path) == [folder], "its owner lives"
        owner.kill()
        owner.wait()
        assert scratch_of(tmp_path) == [folder]
        with scratch_folder(tmp_path) as own:
            assert scratch_of(tmp_path) == [own]
            with writing(tmp_path):
                assert own.is_dir(), "one process may write while it works"
    assert scratch_of(tmp_path) == []
    (tmp_path / ".compact-old").mkdir()  # of a version of mtmh without locks
    with writing(tmp_path):
        assert scratch_of(tmp_path) == []


def test_a_writer_that_comes_while_the_owner_removes_its_folder_is_not_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmdir = os.rmdir
    meanwhile: list[Any] = []

    def after_another_writer(*arguments: Any, **settings: Any) -> None:
        if not meanwhile:  # all files are unlinked, the lock among them
            meanwhile.append(scratch_of(tmp_path))
            with writing(tmp_path):
                pass
        rmdir(*arguments, **settings)

    with scratch_folder(tmp_path) as folder:
        (folder / "vectors.npy").write_text("much")
        monkeypatch.setattr(os, "rmdir", after_another_writer)
    assert meanwhile == [[folder]]
    assert scratch_of(tmp_path) == []
