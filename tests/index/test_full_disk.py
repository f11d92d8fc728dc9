"""A build on a disk that becomes full at any point: an error that names the folder, never a process that dies."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stored_index import write_world

SIZES_KIB = (40, 120, 260, 400, 500, 560, 620, 680, 740, 800, 4000)
BUILDS = """
import os, subprocess, sys
from pathlib import Path
from stored_index import index_config
from mtmh.artifacts import code_of
from mtmh.cli.errors import describe
from mtmh.index.build import build_index
import faiss  # as the next line, done once and not in each child
code_of("index")

root, disk = map(Path, sys.argv[1:3])
for storage in ("flat", "sq8"):
    for size in sys.argv[3:]:
        child = os.fork()
        if child == 0:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk], check=True)
            told = "built"
            try:
                build_index(index_config(root, storage), disk / "index")
            except Exception as error:
                told = describe(error) or repr(error)
            print(storage, size, told, sorted(os.listdir(disk)), flush=True)
            subprocess.run(["umount", "-l", disk], check=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, (storage, size)
"""


@pytest.mark.slow
def test_a_build_on_a_full_disk_ends_in_one_line(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    write_world(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    paths = f"import sys; sys.path[:0] = {[path for path in sys.path if 'tests' in path]}\n"
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", paths + BUILDS, tmp_path, disk, *map(str, SIZES_KIB)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(SIZES_KIB)
    full = [line for line in lines if "the disk is full" in line]
    built = [line for line in lines if " built ['index']" in line]
    assert len(full) + len(built) == len(lines), "\n".join(lines)
    assert len(full) >= 8, "\n".join(lines)
    assert built
    assert all(line.endswith("[]") and str(disk) in line for line in full), "\n".join(lines)
