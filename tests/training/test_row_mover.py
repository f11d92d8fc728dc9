"""Rows of the previous table on 1, 2 and 3 ranks: against plain indexing, and each of them read once."""

from __future__ import annotations

import multiprocessing as mp
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mtmh.modules.id_tables import NO_ROW
from numpy.typing import NDArray

from mtmh.distributed.state_files import StoredTable, write_state
from mtmh.training.continuation import RowMover

NUM_BEFORE, NUM_NOW, DIM = 1003, 1200, 8
ROW_BYTES = 2 * DIM


def rows_before() -> NDArray[np.int64]:
    """Some rows of today's table are new, the others come from all over the previous one."""
    rng = np.random.default_rng(5)
    rows = np.full(NUM_NOW, NO_ROW, np.int64)
    places = rng.permutation(NUM_NOW)[:900]
    rows[places] = rng.permutation(NUM_BEFORE)[:900]
    return rows


def fill(rank: int, world_size: int, folder: Path) -> None:
    """Rank 1 has the columns from 3 on of all rows, the last rank has nothing, the first has a block of whole rows."""
    if world_size > 1:
        store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    read: list[int] = []
    rows_of = StoredTable.rows

    def counted(self: StoredTable, start: int, end: int) -> torch.Tensor:
        read.append(max(0, end - start))
        return rows_of(self, start, end)

    StoredTable.rows = counted  # type: ignore[method-assign]  # in this process alone
    offsets, shape = [((100, 0), (900, DIM)), ((0, 3), (NUM_NOW, DIM - 3)), ((0, 0), (0, 0))][rank]
    piece = torch.full(shape, -1.0, dtype=torch.float16)
    move = RowMover(lambda first, last: rows_before()[first:last], range_bytes=50 * ROW_BYTES)
    move(folder / "state", "table", (offsets, piece) if len(piece) else None)
    np.savez(folder / f"{world_size}-{rank}.npz", piece=piece.numpy(), read=read)
    if world_size > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_pieces_are_those_of_plain_indexing(tmp_path: Path, world_size: int) -> None:
    before = torch.randn(NUM_BEFORE, DIM, generator=torch.Generator().manual_seed(0)).half()
    write_state({"table": before}, tmp_path / "state")
    context = mp.get_context("forkserver")
    ranks = [context.Process(target=fill, args=(rank, world_size, tmp_path)) for rank in range(world_size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * world_size
    rows = rows_before()
    whole = np.where((rows == NO_ROW)[:, None], np.float16(-1), before.numpy()[rows])
    results = [np.load(tmp_path / f"{world_size}-{rank}.npz") for rank in range(world_size)]
    assert np.array_equal(results[0]["piece"], whole[100:1000])
    if world_size > 1:
        assert np.array_equal(results[1]["piece"], whole[:, 3:])
    read = [int(result["read"].sum()) for result in results]
    assert sum(read) <= NUM_BEFORE
    assert max(read) <= -(-NUM_BEFORE // (50 * world_size)) * 50  # each rank its share, in ranges of 50
    if world_size > 1:
        assert sum(read) == NUM_BEFORE
