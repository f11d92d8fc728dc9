"""Frequencies of items as candidates of pairs, estimated from the stream of batches, sharded over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from mtmh.config import LossConfig
from mtmh.data.item_table import ItemTable
from mtmh.data.schema import ITEM_ID
from mtmh.distributed.ranks import Ranks

FREQUENCIES = "frequencies"  # the estimator's name among the parts of a checkpoint


class StreamingFrequencies:
    """Mean gap between two hits of an item, in steps, as an exponential average over the item's hits.

    After Yi et al., Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations (RecSys 2019),
    algorithm 2: ``B <- (1 - rate) B + rate * gap``, and the item is expected ``1 / B`` times a step. Four things are
    added to it:

    * An item that comes ``c`` times in a step, ``g`` steps after its last one, is ``c`` hits ``g / c`` apart; otherwise
      no gap could be shorter than a step, and in large batches all popular items would look alike.
    * The first ``1 / rate`` hits weigh alike (a plain mean), so that an item need not unlearn its start.
    * The start is one hit at the gap of an item that is as frequent as all others; otherwise an item that happens to
      come early would look frequent.
    * The gap that is still open counts as time without a hit: an item that ceases to come fades.

    An item's place is its row in the vocabulary of ``item_id``, by which a run on the next period's data finds it. It
    lies on one rank only, in blocks of equal size. What all ranks agree on is independent of their number, bit for bit.

    Args:
        item_rows: [I] row of each item of the catalogue; 0: it has none and is never asked for. May be
            memory-mapped.
        num_rows: of the vocabulary, row 0 included.
        hits_per_step: pairs of a global step.
        rate: share of an estimate that one further hit replaces, in the long run.
        ranks: this process among the others.

    Attributes:
        num_known: items that have a row.
    """

    def __init__(
        self, item_rows: npt.NDArray[np.integer[Any]], num_rows: int, hits_per_step: int, rate: float, ranks: Ranks
    ) -> None:
        assert 0.0 < rate <= 1.0
        assert num_rows > 1
        self.num_known = num_rows - 1
        block = -(-num_rows // ranks.world_size)  # as DTensor cuts
        self._first = min(ranks.rank * block, num_rows)
        self._item_rows = item_rows
        self._num_rows = num_rows
        self._hits_per_step = hits_per_step
        self._rate = rate
        self._most_hits = math.ceil(1.0 / rate)
        size = min(block, num_rows - self._first)
        self._gap = torch.full((size,), self.num_known / hits_per_step, device=ranks.device)
        self._last_step = torch.zeros(size, dtype=torch.int32, device=ranks.device)
        self._num_hits = torch.ones(size, dtype=torch.int32, device=ranks.device)  # counted up to 1 / rate
        self._mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))

    def places(self, items: Tensor) -> Tensor:
        """Looks up items on the host, in any thread: which of them lie on this rank, and where.

        Args:
            items: [L] int64 distinct catalogue indices, the same on all ranks.

        Returns:
            [2, O] int64: which of the items, and their places here.
        """
        place = self._item_rows[items.numpy()].astype(np.int64) - self._first
        own = np.flatnonzero((place >= 0) & (place < len(self._gap)))
        return torch.from_numpy(np.stack([own, place[own]]))

    def observe(self, step: int, places: Tensor, hits: Tensor) -> Tensor:
        """Takes in a step, then tells how often the items are expected in one; all ranks call it together.

        Args:
            step: finished steps, this one included; never less than before.
            places: [2, O] of L items, from `places`.
            hits: [L] int64, how often each item is a candidate of the global step; may be 0.

        Returns:
            [L] float32, above 0.
        """
        own, place = places.unbind(0)
        count = hits[own].double()
        gap, known = self._gap[place].double(), self._num_hits[place].double()
        elapsed = (step - self._last_step[place]).double()
        hit = count > 0
        weight = torch.maximum(1.0 - (1.0 - self._rate) ** count, count / (known + count))
        gap = torch.where(hit, gap + weight * (elapsed / count.clamp(min=1.0) - gap), gap)
        known = (known + count).clamp(max=self._most_hits)
        self._gap[place] = gap.float()
        self._num_hits[place] = known.int()
        self._last_step[place] = torch.where(hit, step, self._last_step[place])
        open_gap = torch.where(hit, 0.0, elapsed)
        expected = torch.zeros(len(hits), device=self._gap.device)
        expected[own] = (1.0 / (gap + open_gap / known)).float()
        if self._mesh.size() > 1:
            dist.all_reduce(expected)  # one rank has it, the others add 0
        return expected

    def carry_over(self, move: Callable[[str, int, Tensor], None], num_steps: int, hits_per_step: int) -> None:
        """Goes on from the estimates of the period before; items that it did not know keep their start.

        The end of the run before is the beginning of this one: the gap that was open then stays open.

        Args:
            move: given the name of a tensor of `state`, the first row of this rank's block and zeros of its size, fills
                in the values of the period before where the row's item had any.
            num_steps: finished steps of the run before.
            hits_per_step: of the run before; gaps grow and shrink with the steps.
        """
        before = {name: torch.zeros_like(part) for name, part in self._parts().items()}
        for name, part in before.items():
            move(name, self._first, part)
        known = before["num_hits"] > 0
        scale = hits_per_step / self._hits_per_step
        self._gap[known] = before["gap"][known] * scale
        self._last_step[known] = ((before["last_step"][known] - num_steps) * scale).round().int()
        self._num_hits[known] = before["num_hits"][known].clamp(max=self._most_hits)

    def state(self) -> dict[str, Tensor]:
        """The estimates as tensors over all rows, each rank with its block."""
        return {
            name: DTensor.from_local(
                part, self._mesh, [Shard(0)], run_check=False, shape=torch.Size([self._num_rows]), stride=(1,)
            )
            for name, part in self._parts().items()
        }

    def _parts(self) -> dict[str, Tensor]:
        return {"gap": self._gap, "last_step": self._last_step, "num_hits": self._num_hits}

    def restored(self) -> None:
        """The tensors of `state` share memory with the estimates: nothing is left to do."""


def streaming_frequencies(
    loss: LossConfig, hits_per_step: int, table: ItemTable, ranks: Ranks
) -> StreamingFrequencies | None:
    """The estimator of a run, untouched; ``None`` unless ``loss.log_q`` asks for it."""
    if loss.log_q != "streaming":
        return None
    (num_rows,) = (feature.num_rows for feature in table.schema.id_features if feature.name == ITEM_ID)
    return StreamingFrequencies(table.columns[ITEM_ID].values, num_rows, hits_per_step, loss.log_q_rate, ranks)
