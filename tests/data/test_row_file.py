"""Files that are filled through a memory map."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtmh.data.arrays import open_array
from mtmh.data.row_file import RowFile, create_array, preallocate

FILL = """
import sys
from pathlib import Path
import numpy as np
from mtmh.cli.errors import describe
from mtmh.data.row_file import create_array
try:
    array = create_array(Path(sys.argv[1]), np.float32, (1_000_000, 4))
    array[:] = 1.0
except OSError as error:
    print(describe(error))
"""


def test_a_mapped_file_is_zeros_and_holds_its_place_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    array = create_array(path, np.float32, (3000, 5))
    assert not array.any()
    assert path.stat().st_blocks * 512 >= 3000 * 5 * 4
    array[7] = 3.0
    array.flush()
    np.testing.assert_array_equal(RowFile(path).read(7, 8), np.full((1, 5), 3.0, np.float32))
    assert create_array(tmp_path / "none.npy", np.int64, (0, 4)).shape == (0, 4)
    preallocate(path, 0)
    assert path.stat().st_size == 0


def test_a_map_for_which_there_is_no_room_is_an_error_and_no_signal(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$@"'
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    command = ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-c", FILL, tmp_path / "rows.npy"]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/rows.npy: the disk is full: ")
    assert done.stdout.endswith("16,000,128 bytes are needed for it\n")


def test_a_header_that_is_none_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.arange(6))
    whole = path.read_bytes()
    assert whole.index(b"\n") == 127  # the magic string, the length of the header, and the header end there
    refused = []
    for place in range(128):
        for byte in b"\0\1\n'([{}0#L-":
            path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            try:
                open_array(path)
            except ValueError as error:
                refused.append(str(error))
    assert len(refused) > 500
    assert all(text.startswith(str(path)) for text in refused)
