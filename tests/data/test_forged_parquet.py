"""Forged Parquet files: an error that names the file, or a table; never a process that dies."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mtmh.data.parquet import read_whole

CASES = 150
READER = """
import os, resource, signal, sys
from pathlib import Path
import pyarrow.dataset  # here once, not in each child
from mtmh.data.parquet import read_whole
pyarrow.set_cpu_count(1)  # a pool of threads does not go along with a fork
for path in map(Path, sys.argv[1:]):
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(20)
        try:
            read_whole(path).validate(full=True)
            os._exit(0)
        except ValueError as error:
            os._exit(1 if str(path) in str(error) else 2)
        except BaseException as error:
            print(path, repr(error), flush=True)
            os._exit(3)
    print(os.waitpid(child, 0)[1])
"""


def forgeries(whole: bytes) -> Iterator[bytes]:
    source, size = random.Random(0), len(whole)
    footer = struct.unpack("<I", whole[-8:-4])[0] + 8
    for number in range(CASES):
        near = source.choice((size, footer, footer, 100))
        place = size - 1 - source.randrange(near)
        if number % 3 == 0:
            yield whole[:place] + bytes([whole[place] ^ 1 << source.randrange(8)]) + whole[place + 1 :]
        elif number % 3 == 1:
            word = struct.pack("<q", source.choice((2**62, -1, 2**31, 0, 2**40)))[: source.choice((1, 4, 8))]
            yield whole[:place] + word + whole[place + len(word) :]
        else:
            yield whole[:place]


def test_a_forged_table_ends_in_an_error_or_a_table(tmp_path: Path) -> None:
    table = pa.table(
        {
            "item_id": pa.array(range(3000), pa.int64()),
            "text": [f"a text {number % 77}" for number in range(3000)],
            "tags": [[f"tag {number % 5}"] * (number % 3) for number in range(3000)],
            "price": pa.array([None if number % 9 == 0 else number / 7 for number in range(3000)], pa.float32()),
        }
    )
    whole = tmp_path / "whole.parquet"
    pq.write_table(table, whole, row_group_size=1000)
    assert read_whole(whole, ["price"]).equals(table.select(["price"]))
    files = []
    for number, content in enumerate(forgeries(whole.read_bytes())):
        files.append(tmp_path / f"{number}.parquet")
        files[-1].write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", READER, *files], capture_output=True, text=True, timeout=240, check=True
    )
    ended = done.stdout.split("\n")[:-1]
    assert len(ended) == CASES
    assert set(ended) == {"0", "256"}, "read, or refused with the name of the file"
    assert ended.count("256") > CASES / 2
