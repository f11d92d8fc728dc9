"""Check that a state consists of numbers, before it is written."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from mtmh.distributed.sharding import local_shards
from mtmh.distributed.state_files import State

_NAMED = 3  # tensors, in an error message


class NonFiniteStateError(RuntimeError):
    """Weights or optimizer state are no longer numbers."""


@torch.no_grad()
def check_finite(state: State, step: int) -> None:
    """Looks at what each rank holds, in one pass without a copy; all ranks call it together and get the same answer.

    A loss tells of the weights that a step began with. Those it ended with are looked at here.

    Args:
        state: tensors by name, replicated or sharded.
        step: finished steps, for the message.

    Raises:
        NonFiniteStateError: a value is infinite or not a number; on all ranks, wherever the value is.
    """
    own = sorted(name for name, value in state.items() if not all(map(_is_finite, _own_pieces(value))))
    found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, own)
    names = sorted({name for part in found for name in part})
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise NonFiniteStateError(
            f"step {step}: its update left values that are infinite or not a number in {', '.join(names[:_NAMED])}"
            f"{more}. Not written: the last checkpoint is from before; a lower learning rate may help, and fp32 where "
            f"halves overflow"
        )


def _own_pieces(value: Tensor) -> Iterable[Tensor]:
    return [value.to_local()] if isinstance(value, DTensor) else (piece for _, piece in local_shards(value))


def _is_finite(piece: Tensor) -> bool:
    if not piece.is_floating_point() or piece.numel() == 0:
        return True
    lowest, highest = torch.aminmax(piece)  # both are NaN if any value is
    return bool((lowest.isfinite() & highest.isfinite()).item())
