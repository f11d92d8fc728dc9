"""How often each item is a pair's candidate, estimated from the stream of training batches; sharded over the ranks."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from mtmh.config import Config
from mtmh.data.item_table import ItemTable
from mtmh.training.distributed import Ranks


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

    Item ``i`` lies on one rank only, in blocks of equal size in the order of the catalogue. What all ranks agree on is
    independent of their number, bit for bit.

    Args:
        num_items: items of the catalogue.
        num_known: items that can be hit.
        hits_per_step: pairs of a global step.
        rate: share of an estimate that one further hit replaces, in the long run.
        ranks: this process among the others.

    Attributes:
        num_known: as given.
    """

    def __init__(self, num_items: int, num_known: int, hits_per_step: int, rate: float, ranks: Ranks) -> None:
        assert 0.0 < rate <= 1.0
        assert 0 < num_known <= num_items
        self.num_known = num_known
        block = -(-num_items // ranks.world_size)  # as DTensor cuts
        self._first = min(ranks.rank * block, num_items)
        self._num_items = num_items
        self._rate = rate
        self._most_hits = math.ceil(1.0 / rate)
        size = min(block, num_items - self._first)
        self._gap = torch.full((size,), num_known / hits_per_step, device=ranks.device)
        self._last_step = torch.zeros(size, dtype=torch.int32, device=ranks.device)
        self._num_hits = torch.ones(size, dtype=torch.int32, device=ranks.device)  # counted up to 1 / rate
        self._mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))

    def observe(self, step: int, items: Tensor, hits: Tensor) -> Tensor:
        """Takes in a step, then tells how often the items are expected in one; all ranks call it together.

        Args:
            step: finished steps, this one included; never less than before.
            items: [L] int64 distinct catalogue indices, the same on all ranks.
            hits: [L] int64, how often each is a candidate of the global step; may be 0.

        Returns:
            [L] float32, above 0.
        """
        place = items - self._first
        own = ((place >= 0) & (place < len(self._gap))).nonzero().squeeze(1)
        place, count = place[own], hits[own].double()
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
        expected = torch.zeros(len(items), device=self._gap.device)
        expected[own] = (1.0 / (gap + open_gap / known)).float()
        if self._mesh.size() > 1:
            dist.all_reduce(expected)  # one rank has it, the others add 0
        return expected

    def state(self) -> dict[str, Tensor]:
        """The estimates as tensors over the whole catalogue, each rank with its block."""
        parts = {"gap": self._gap, "last_step": self._last_step, "num_hits": self._num_hits}
        return {
            name: DTensor.from_local(
                part, self._mesh, [Shard(0)], run_check=False, shape=torch.Size([self._num_items]), stride=(1,)
            )
            for name, part in parts.items()
        }

    def restored(self) -> None:
        """The tensors of `state` share memory with the estimates: nothing is left to do."""


def streaming_frequencies(config: Config, table: ItemTable, ranks: Ranks) -> StreamingFrequencies | None:
    """The estimator of a run, untouched; ``None`` unless ``loss.log_q`` asks for it."""
    if config.loss.log_q != "streaming":
        return None
    num_known = int(np.count_nonzero(table.train_count))
    return StreamingFrequencies(
        len(table.train_count), num_known, config.training.batch_size, config.loss.log_q_rate, ranks
    )
