"""Ranks that wait for one that works alone, and digests that all of them share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from mtmh.artifacts import FileRecord
from mtmh.distributed import ranks as ranks_module
from mtmh.distributed.ranks import file_records, join_ranks, on_first

SHORT = timedelta(seconds=2)
SIZES = {"a": 1000, "b": 10, "c": 70_000, "d": 0, "e": 3}


def join(rank: int, port: int) -> None:
    place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "localhost", "TORCHELASTIC_USE_AGENT_STORE": "True"}


def slow() -> int:
    time.sleep(2 * SHORT.total_seconds())
    return 5


def wait_for_the_first(rank: int, port: int, folder: Path) -> None:
    join(rank, port)
    real = dist.distributed_c10d.default_pg_timeout
    assert real < ranks_module.PATIENCE, "for hours of one rank's work"
    with join_ranks("cpu") as ranks:
        assert on_first(ranks, slow) == 5
        read: list[str] = []
        of = FileRecord.of

        def note(path: Path) -> FileRecord:
            read.append(path.name)
            return of(path)

        FileRecord.of = note  # type: ignore[method-assign]
        records = file_records(folder, SIZES, ranks)
        assert read == [["c", "b", "d"], ["a", "e"]][rank]
        assert records == {name: of(folder / name) for name in SIZES}
        ranks_module.on_all(lambda: (folder / f"{rank}.done").touch())


def wait_with_little_patience(rank: int, port: int, folder: Path) -> None:
    join(rank, port)
    ranks_module.PATIENCE = SHORT
    try:
        with join_ranks("cpu") as ranks:
            on_first(ranks, slow)
    except (RuntimeError, dist.DistBackendError):
        (folder / f"{rank}.timed-out").touch()


@pytest.fixture
def port() -> Iterator[int]:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    yield store.port
    del store  # until here


def test_ranks_wait_for_hours_and_share_the_digests(tmp_path: Path, port: int) -> None:
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    mp.start_processes(wait_for_the_first, args=(port, tmp_path), start_method="forkserver", nprocs=2)
    assert len(list(tmp_path.glob("*.done"))) == 2


def test_it_is_the_timeout_of_the_ranks_that_counts(tmp_path: Path, port: int) -> None:
    mp.start_processes(wait_with_little_patience, args=(port, tmp_path), start_method="forkserver", nprocs=2)
    assert (tmp_path / "1.timed-out").exists()
