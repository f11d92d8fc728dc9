"""Errors that a user can mend, as the verbs tell them: one line, exit code 2, no traceback."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtmh import __version__
from mtmh.cli.errors import EXTRAS, describe

SIMULATE = "data.options={num_users: 200, num_items: 300, num_events: 8000, num_topics_l1: 4, num_topics_l2: 3}"


def mtmh(*arguments: str, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*(before or []), sys.executable, "-m", "mtmh.cli", *arguments]
    return subprocess.run(
        command, env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=240, check=False
    )


def prepare(root: str | Path, before: list[str] | None = None) -> str:
    """The verb's words on standard error, where it fails."""
    done = mtmh("prepare", "demo", "--set", f"paths.root={root}", "--set", SIMULATE, before=before)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def in_a_file_system_of_its_own(folder: Path, options: str) -> list[str]:
    """The words before a command for which a small file system is mounted on the folder, seen by it alone."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    mount = f'mount -t tmpfs -o {options} none "{folder}"'
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    return ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def test_a_full_disk(tmp_path: Path) -> None:
    said = prepare(tmp_path, in_a_file_system_of_its_own(tmp_path, "size=64k"))
    assert f"error: {tmp_path}" in said
    assert "the disk is full: " in said
    assert "of 65.5 kB are free" in said


def test_a_read_only_file_system(tmp_path: Path) -> None:
    said = prepare(tmp_path, in_a_file_system_of_its_own(tmp_path, "ro"))
    assert f"error: {tmp_path}" in said
    assert "the file system is read-only; choose another folder" in said


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = prepare(tmp_path / "file" / "runs")
    assert f"error: {tmp_path}/file/runs" in said
    assert "a file stands where a folder is needed" in said


def test_a_folder_that_nobody_may_write(tmp_path: Path) -> None:
    if not Path("/sys").is_dir():
        pytest.skip("needs /sys, which refuses folders to the superuser too")
    assert "/sys/runs: no permission" in prepare("/sys/runs")


def test_words_of_a_library_and_notes_of_ours_are_told() -> None:
    told = describe(RuntimeError("write error in index.faiss: No space left on device"))
    assert told is not None
    assert "the disk is full" in told
    error = OSError(errno.ENOSPC, "No space left on device", "/nowhere/index/file")
    error.add_note("needs 12 GB")
    outer = RuntimeError("a shard failed")
    outer.__cause__ = error
    told = describe(outer)
    assert told is not None
    assert told.startswith("/nowhere/index/file: the disk is full: ")
    assert told.endswith("; needs 12 GB")


def test_a_missing_package_names_its_extra() -> None:
    told = describe(ModuleNotFoundError("No module named 'torchx.specs'", name="torchx.specs"))
    assert told == "the package torchx is not installed: pip install 'mtmh[launch]'"
    assert set(EXTRAS.values()) == {"train", "serve", "launch", "report", "sign"}


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    for error in (AssertionError("impossible"), KeyError("x"), FileNotFoundError(errno.ENOENT, "no", "x")):
        assert describe(error) is None
    assert describe(ModuleNotFoundError("No module named 'mtmh.gone'", name="mtmh.gone")) is None


def test_version_help_and_a_misspelt_verb() -> None:
    assert mtmh("--version").stdout == f"mtmh {__version__}\n"
    bare = mtmh()
    assert bare.returncode == 0
    assert "Usage:" in bare.stdout
    assert "build-index" in bare.stdout
    wrong = mtmh("trian")
    assert wrong.returncode == 2
    assert "Did you mean 'train'?" in wrong.stderr
