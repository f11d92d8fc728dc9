"""Sharded state on disk: torch.distributed.checkpoint, with every name accounted for and no pickle."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from mtmh.distributed.state_format import StateReader, StateWriter

State = dict[str, Tensor]  # name -> tensor or ShardedTensor, written and filled in place


def write_state(state: State, folder: Path) -> None:
    """Writes what each rank holds; all ranks call it together.

    Args:
        state: flat; replicated tensors under the same name on all ranks, sharded ones as ShardedTensor.
        folder: existing or not, seen by all ranks.
    """
    save(state, storage_writer=StateWriter(folder))


def begin_write_state(state: State, folder: Path, group: dist.ProcessGroup) -> Future[Any]:
    """The same in the background, from a copy of the state that is made before this returns.

    Args:
        state: as for `write_state`; may change as soon as this returns.
        folder: as for `write_state`.
        group: all ranks, for CPU tensors, used for nothing else: its collectives run beside those of training.

    Returns:
        Done when all ranks have written.
    """
    written = async_save(
        state,
        storage_writer=StateWriter(folder),
        process_group=group,
        # PyTorch's other stager fails on ShardedTensor.
        async_stager=BlockingAsyncStager(),
    )
    assert isinstance(written, Future)
    return written


def own_files(rank: int) -> str:
    """Pattern of the names of the files that a rank writes; the index is the first rank's beside those."""
    return f"__{rank}_*.distcp"


def read_state(state: State, folder: Path, *, prefixes: tuple[str, ...], distributed: bool = True) -> None:
    """Fills ``state`` in place, whatever the number of ranks that wrote it.

    Args:
        state: the tensors to fill, in their present sharding.
        folder: as given to `write_state`.
        prefixes: names on disk that begin so must all be asked for; others may stay unread.
        distributed: all ranks read together, each its shards; otherwise this process reads all.

    Raises:
        ValueError: names that only one side knows, a wrong shape, or an unexpected kind of entry.
    """
    reader = StateReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    # A rank only names the tables it holds a part of, so what is there to fill is the union over ranks.
    names = [sorted(state)]
    if distributed:
        names = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(names, sorted(state))
    wanted = {name for part in names for name in part}
    missing = sorted(wanted - stored.keys())
    left_over = sorted(name for name in stored.keys() - wanted if name.startswith(prefixes))
    if missing or left_over:
        raise ValueError(
            f"{folder}: does not hold the state of this model; not in the files: {_named(missing)}; "
            f"in the files only: {_named(left_over)}"
        )
    for name, value in state.items():
        entry = stored[name]
        if not isinstance(entry, TensorStorageMetadata) or tuple(entry.size) != tuple(value.size()):
            raise ValueError(
                f"{folder}: {name}: expected a tensor of shape {tuple(value.size())}, found "
                f"{tuple(entry.size) if isinstance(entry, TensorStorageMetadata) else 'no tensor'}"
            )
    with _quiet_about_one_process():
        load(state, storage_reader=reader, no_dist=not distributed)


def stored_names(folder: Path) -> set[str]:
    """Names of all entries of a state on disk."""
    return set(StateReader(folder).read_metadata().state_dict_metadata)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a state on disk, by name."""
    entries = StateReader(folder).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def stored_pieces(folder: Path, name: str) -> list[tuple[tuple[int, ...], Tensor]]:
    """The pieces of one tensor as the ranks wrote them, memory-mapped: (offsets, piece).

    For tensors that are too large for one process and whose rows are wanted in another order than `read_state` offers.

    Args:
        folder: as given to `write_state`.
        name: one of `stored_shapes`.
    """
    return StateReader(folder).pieces(name)[1]


class StoredTable:
    """One tensor of a state on disk, read by rows.

    Args:
        folder: as given to `write_state`.
        name: one of `stored_shapes`, of one dimension or two.

    Attributes:
        shape: of the whole tensor.
        dtype: of its values.
    """

    def __init__(self, folder: Path, name: str) -> None:
        entry, self._pieces = StateReader(folder).pieces(name)
        self.shape = tuple(entry.size)
        self.dtype = entry.properties.dtype

    def rows(self, start: int, end: int) -> Tensor:
        """Rows ``start`` to ``end - 1``; nothing else of it is read."""
        rows = torch.empty(max(0, end - start), *self.shape[1:], dtype=self.dtype)
        for (first, *columns), piece in self._pieces:
            low, high = max(first, start), min(first + len(piece), end)
            if low < high:
                into = rows[low - start : high - start]
                for column in columns:
                    into = into.narrow(1, column, piece.shape[1])
                into.copy_(piece[low - first : high - first])
        return rows


@contextmanager
def _quiet_about_one_process() -> Iterator[None]:
    with warnings.catch_warnings():
        # One process is what the caller asked for.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _named(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"
