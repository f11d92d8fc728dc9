"""Gives the ranks' batches of a step one number of items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from mtmh.data.batch import ItemBatch

AnyItemBatch = TypeVar("AnyItemBatch", bound=ItemBatch)


def of_one_size(batches: Iterator[AnyItemBatch], multiple_of: int = 1) -> Iterator[AnyItemBatch]:
    """The same batches with the number of items of the largest rank; all ranks iterate together.

    Distinct items differ in number between ranks, but row-wise sharding sums over ranks with a reduce-scatter, which
    takes equal parts only (on gloo; on NCCL unequal ones are slower).

    Args:
        batches: of this rank.
        multiple_of: the number of items is rounded up to a multiple of this.
    """
    for batch in batches:
        size = torch.tensor(len(batch.item_index))
        if dist.get_world_size() > 1:
            dist.all_reduce(size, dist.ReduceOp.MAX)
        yield padded(batch, -(-int(size) // multiple_of) * multiple_of)


def padded(batch: AnyItemBatch, num_items: int) -> AnyItemBatch:
    """The batch with items at its end that no example or draw points to: without ids, all inputs zero.

    Args:
        batch: ``U`` items, on the host.
        num_items: at least ``U``.
    """
    missing = num_items - len(batch.item_index)
    assert missing >= 0
    if missing == 0:
        return batch

    def grown(rows: Tensor) -> Tensor:
        return functional.pad(rows, (0, 0) * (rows.dim() - 1) + (0, missing))

    keys = batch.sparse.keys()
    lengths = batch.sparse.lengths().view(len(keys), -1)
    wider = replace(
        batch,
        sparse=KeyedJaggedTensor(
            keys=keys, values=batch.sparse.values(), lengths=functional.pad(lengths, (0, missing)).view(-1)
        ),
        dense=grown(batch.dense),
        item_index=grown(batch.item_index),
        log_q=grown(batch.log_q),
        content=grown(batch.content),
    )
    return wider.pin_memory() if batch.dense.is_pinned() else wider
