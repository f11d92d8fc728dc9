"""The ranks of a run: joining them, and gathers through which gradients flow back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from mtmh.artifacts import FileRecord
from mtmh.distributed.rendezvous import meet
from mtmh.sole_writer import sole_writer

T = TypeVar("T")

# Ranks wait on the CPU while one of them copies or measures what belongs to all: at two billion items longer than the
# 30 minutes that gloo allows by itself. That a rank is gone its launcher notices, not this.
PATIENCE = timedelta(hours=24)
# On GPUs they exchange what they compute at the same time: a long wait means that one hangs.
GPU_PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among the processes of the run.

    Attributes:
        rank: 0 to ``world_size - 1``.
        world_size: processes of the run.
        local_world_size: processes of the run on this host.
        device: where this process computes.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True for the one rank that prints and commits."""
        return self.rank == 0


@contextmanager
def join_ranks(device: Literal["auto", "cpu", "cuda"]) -> Iterator[Ranks]:
    """Joins the ranks that torchrun started; without torchrun, a group of this process alone.

    A process group that stands already is used as it is and left standing.

    Args:
        device: ``auto`` takes CUDA where there is a GPU.

    Raises:
        ValueError: CUDA asked for and not there, or fewer GPUs than ranks on this host.
    """
    chosen = chosen_device(device)
    joined_here = not dist.is_initialized()
    if joined_here:
        # On CUDA the counters and checkpoints still exchange CPU tensors, so both backends are there.
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            store, rank, world_size = meet()
            dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=rank, world_size=world_size)
            if chosen.type == "cuda":
                nccl = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda"))
                nccl._set_default_timeout(GPU_PATIENCE)
        else:
            os.environ.setdefault("LOCAL_WORLD_SIZE", "1")  # TorchRec asks for it
            dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    world_size = dist.get_world_size()
    try:
        yield Ranks(
            rank=dist.get_rank(),
            world_size=world_size,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
            device=chosen,
        )
    finally:
        if joined_here:
            dist.destroy_process_group()


def on_first(ranks: Ranks, action: Callable[[], T]) -> T:
    """Runs ``action`` on rank 0 while the others wait; all get its result, or its ValueError or OSError.

    Args:
        ranks: this process among the others.
        action: returns something that can be sent to the other ranks.
    """
    outcome: list[Any] = [None, None]
    if ranks.is_first:
        try:
            outcome[0] = action()
        except (ValueError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])


@contextmanager
def writing_alone(ranks: Ranks, folder: Path) -> Iterator[None]:
    """Holds the lock of a folder that all ranks write together; its errors are those of `sole_writer`."""
    with ExitStack() as held:
        on_first(ranks, lambda: held.enter_context(sole_writer(folder)))
        yield


def on_all(action: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Runs ``action`` on every rank; all get all results, or the first rank's ValueError or OSError.

    Args:
        action: returns something that can be sent to the other ranks.
        group: of all ranks; None: the default one.

    Returns:
        one result a rank, in rank order.
    """
    own: tuple[Any, Exception | None]
    try:
        own = action(), None
    except (ValueError, OSError) as error:
        own = None, error
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, own, group=group)
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for result, _ in outcomes]


def file_records(folder: Path, names: Iterable[str], ranks: Ranks) -> dict[str, FileRecord]:
    """Sizes and digests of files for a manifest, each read by one rank: one alone would read for hours.

    Args:
        folder: of the files, which all ranks see.
        names: of the files in it, the same ones on all ranks.
        ranks: this process among the others.
    """
    largest_first = sorted(names, key=lambda name: (-(folder / name).stat().st_size, name))
    own = largest_first[ranks.rank :: ranks.world_size]
    return {
        name: record
        for records in on_all(lambda: {name: FileRecord.of(folder / name) for name in own})
        for name, record in records.items()
    }


def gather_numbers(numbers: Tensor) -> list[list[float]]:
    """Some numbers of each rank, in rank order, on the host of every rank.

    Args:
        numbers: [n] float64, exact for whole numbers below 2^53.
    """
    world_size = dist.get_world_size()
    if world_size == 1:
        return [cast(list[float], numbers.tolist())]
    gathered = numbers.new_empty(world_size * len(numbers))
    dist.all_gather_into_tensor(gathered, numbers)
    return cast(list[list[float]], gathered.view(world_size, -1).tolist())


def gather_rows(rows: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all ranks, one rank after another, on every rank; gradients flow back to the rows' owners.

    The gradient of a row is the sum over ranks of the gradients of its copies.

    Args:
        rows: [sizes[rank], ...], any dtype.
        sizes: rows of each rank, the same list on every rank.

    Returns:
        [sum(sizes), ...].
    """
    assert len(rows) == sizes[dist.get_rank()]
    if len(sizes) == 1:
        return rows
    return cast(Tensor, _GatherRows.apply(rows, sizes))  # type: ignore[no-untyped-call]


def exchange_rows(rows: Tensor, sizes: list[int]) -> tuple[Tensor, list[int]]:
    """Sends rows to the ranks that they are for; all ranks call it together.

    Args:
        rows: [sum(sizes), ...] on the CPU, those for the first rank first; one dtype and width on all ranks.
        sizes: rows for each rank.

    Returns:
        The rows that came, those from the first rank first, and how many came from each.
    """
    assert len(rows) == sum(sizes)
    if len(sizes) == 1:
        return rows, sizes
    counts = torch.empty(len(sizes), dtype=torch.int64)
    dist.all_to_all_single(counts, torch.tensor(sizes))
    came = counts.tolist()
    received = rows.new_empty(sum(came), *rows.shape[1:])
    width = rows.element_size() * math.prod(rows.shape[1:])
    # As bytes: gloo does not know all types. What comes from NumPy may have strides that have no view as bytes.
    sent = rows.clone(memory_format=torch.contiguous_format)
    into, data = (tensor.view(-1).view(torch.uint8) for tensor in (received, sent))
    dist.all_to_all_single(into, data, [width * count for count in came], [width * size for size in sizes])
    return received, came


class _GatherRows(torch.autograd.Function):
    """All-gather of blocks padded to one size (collectives want equal shapes); its transpose is a reduce-scatter."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        world_size, longest = len(sizes), max(sizes)
        gathered = rows.new_empty(world_size * longest, *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, _padded(rows, longest))
        if min(sizes) == longest:
            return gathered
        blocks = gathered.view(world_size, longest, *rows.shape[1:])
        return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), sizes = grads, ctx.sizes
        longest = max(sizes)
        blocks = torch.cat([_padded(block, longest) for block in torch.split(grad, sizes)]).contiguous()
        own = grad.new_empty(longest, *grad.shape[1:])
        dist.reduce_scatter_tensor(own, blocks)
        return own[: sizes[dist.get_rank()]], None


def _padded(rows: Tensor, num_rows: int) -> Tensor:
    if len(rows) == num_rows:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(num_rows - len(rows), *rows.shape[1:])])


def chosen_device(setting: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of ``training.device``, for this process.

    Raises:
        ValueError: as `join_ranks`.
    """
    num_gpus = torch.cuda.device_count()
    if setting == "cpu" or (setting == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if num_gpus == 0:
        raise ValueError("training.device is cuda, but PyTorch sees no GPU here; set training.device=cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= num_gpus:
        raise ValueError(
            f"local rank {local_rank} has no GPU: this host has {num_gpus}; start at most {num_gpus} processes on it"
        )
    chosen = torch.device("cuda", local_rank)
    torch.cuda.set_device(chosen)
    return chosen
