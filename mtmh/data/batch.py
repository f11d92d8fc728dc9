"""The training batch: one rank's share of the pairs and negatives of one global step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


class Movable(Pipelineable):  # type: ignore[misc]
    """A dataclass whose tensors move together; what is none stays as it is."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """A copy on ``device``; asynchronous from pinned memory if ``non_blocking``."""
        parts = {name: part.to(device=device, non_blocking=non_blocking) for name, part in self._parts().items()}
        return replace(self, **parts)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tells the allocator that ``stream`` uses the tensors."""
        for part in self._parts().values():
            part.record_stream(stream)

    def pin_memory(self) -> Self:
        """A copy in page-locked memory."""
        return replace(self, **{name: part.pin_memory() for name, part in self._parts().items()})

    def _parts(self) -> dict[str, Any]:
        """All that lives on a device, by field name."""
        return {name: part for name, part in vars(self).items() if isinstance(part, (Tensor, Pipelineable))}


@dataclass
class ItemBatch(Movable):
    """Item inputs of one rank in one step, each distinct item once, and the examples that point to them by row.

    Attributes:
        sparse: id features in schema order as keys, ``U`` bags each; int64 values and lengths. Behind them perhaps the
            items' rows in a table of content embeddings.
        dense: [U, F] float32 float features.
        item_index: [U] int64 catalogue index of each row, ascending.
        log_q: [U] float32 log probability that one draw of the negatives' mix is this item; zeros when off.
        content: [U, Dc] float32 further inputs of each item, perhaps float16 until they are on their device; Dc = 0
            without.
        trigger: [M] int64 row (0 to U - 1) of each example's trigger.
        positive: [M] int64 row of each example's candidate.
        uniform: [N] int64 rows of this rank's share of the uniform negatives. ``N`` may differ by 1 between ranks.
        step: global step, counted over all epochs.
        epoch: the epoch that the step belongs to.
    """

    sparse: KeyedJaggedTensor
    dense: Tensor
    item_index: Tensor
    log_q: Tensor
    content: Tensor
    trigger: Tensor
    positive: Tensor
    uniform: Tensor
    step: int
    epoch: int

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """The batch on ``device``, content widened there; asynchronous from pinned memory if ``non_blocking``."""
        moved = super().to(device, non_blocking)
        return replace(moved, content=moved.content.float())


@dataclass
class PairBatch(ItemBatch):
    """Pairs, negatives and item inputs of one rank in one step; each distinct item is there once.

    Sizes: ``U`` distinct items of this rank's share, ``M`` pairs, ``N`` uniform negatives, ``Dc`` teacher width,
    ``R`` distinct user histories, ``H`` items in them.

    The histories are cut to their last ``loss.history_mask_length`` items, so the pair's own trigger and positive may
    be missing: who masks accidental hits adds ``item_index[trigger]`` and ``item_index[positive]`` to each row's
    history. With masks off there is one empty history (``R = 1``, ``H = 0``) that all pairs point to.

    Attributes:
        content: [U, Dc] float32 teacher embeddings, unit length, zero row: no content; Dc = 0 without a teacher, or
            where a table has them.
        weight: [M] float32; 0 for a pair of an item with itself, which is there to keep the count and teaches nothing.
        history_values: [H] int64 catalogue indices, user after user.
        history_offsets: [R + 1] int64; history ``r`` owns the values from ``history_offsets[r]`` to before
            ``history_offsets[r + 1]``.
        history_row: [M] int64 history (0 to R - 1) of each pair's user.
    """

    weight: Tensor
    history_values: Tensor
    history_offsets: Tensor
    history_row: Tensor
