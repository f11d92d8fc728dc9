"""Tables of raw ids while a model trains: sharded, their evicted rows made new, their clock and their counts."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embeddingbag import (
    ManagedCollisionEmbeddingBagCollectionSharder,
    ShardedManagedCollisionEmbeddingBagCollection,
)
from torchrec.distributed.mc_modules import ManagedCollisionCollectionSharder
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from mtmh.modules.id_tables import NO_ROW, HashIdRows, scrambled


class IdTableSharder(ManagedCollisionEmbeddingBagCollectionSharder):  # type: ignore[misc]
    """TorchRec's sharder of managed-collision tables, with evicted rows that start afresh.

    Args:
        table_sharder: shards the weights.
        seed: of the values of new rows.
    """

    def __init__(self, table_sharder: EmbeddingBagCollectionSharder, seed: int) -> None:
        super().__init__(ebc_sharder=table_sharder, mc_sharder=ManagedCollisionCollectionSharder())
        self._table_sharder = table_sharder
        self._seed = seed

    def shard(
        self,
        module: ManagedCollisionEmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,  # noqa: ARG002
    ) -> _ShardedIdTables:
        """The part of this rank."""
        return _ShardedIdTables(
            module,
            params,
            ebc_sharder=self._table_sharder,
            mc_sharder=self._mc_sharder,
            env=env,
            device=device or torch.device("cuda"),
            seed=self._seed,
        )


class _ShardedIdTables(ShardedManagedCollisionEmbeddingBagCollection):  # type: ignore[misc]
    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seed = seed

    @torch.no_grad()
    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        """Gives evicted rows first values and no optimizer state, before they are looked up.

        TorchRec's own has no kernel on the CPU, and draws values that depend on how the table is cut.
        """
        configs = self._embedding_module._table_name_to_config
        modules = self._managed_collision_collection._managed_collision_modules
        for name, rows in evictions_per_table.items():
            if rows is None:
                continue
            kernel, index = self._table_to_tbe_and_index[name]
            weights = kernel.split_embedding_weights()[int(index)]
            weights[rows] = first_values(modules[name].identities[rows], configs[name], self._seed).to(weights.dtype)
            for state in kernel.split_optimizer_states()[int(index)]:
                state[rows] = 0


def first_values(ids: Tensor, table: EmbeddingBagConfig, seed: int) -> Tensor:
    """Values of a row that an id takes over from another: a function of the id, the same on any rank and any row.

    Counter-based uniform values in the range of the table's settings: a hash of seed, table, id and column.

    Args:
        ids: [N] int64 new owners of the rows.
        table: name, width and range.
        seed: of the run.

    Returns:
        [N, D] float32.
    """
    salt = int.from_bytes(hashlib.sha256(f"{seed}/{table.name}/evicted".encode()).digest()[:8], "little", signed=True)
    columns = torch.arange(table.embedding_dim, device=ids.device)
    uniform = (scrambled(scrambled(ids + salt)[:, None] + columns) >> 39).float() / 2**24
    low, high = table.get_weight_init_min(), table.get_weight_init_max()
    values: Tensor = low + (high - low) * uniform
    return values


class IdTables:
    """The tables of raw ids of a model that trains: their clock and their counts. All ranks call it together.

    Args:
        model: sharded, its state already restored.
    """

    def __init__(self, model: nn.Module) -> None:
        self._tables = [module for module in model.modules() if isinstance(module, HashIdRows)]
        if not self._tables:
            return
        clocks = torch.stack([table.newest() for table in self._tables])
        dist.all_reduce(clocks, dist.ReduceOp.MAX)
        for table, clock in zip(self._tables, clocks.tolist(), strict=True):
            table.now = clock
        self._taken = self._sums()[:, 0].tolist()

    def tick(self) -> None:
        """Begins a step: what was seen before can now be told from what comes.

        The clock itself is not saved: the newest entry of the last-seen times is what it was at the last step, so it
        goes on in a resumed run, and in one that continues from another run's model.
        """
        for table in self._tables:
            table.now += 1

    def counts(self) -> dict[str, float]:
        """Counts since the last call, over all ranks; for the log.

        Returns:
            for each table, as ``TABLE/NAME``: ``lookups`` (ids), ``inserts`` (ids that were given a row),
            ``collisions`` (look-ups of ids that found all rows they may take in the hands of others), ``evictions``,
            and ``occupancy``, the share of rows that are taken.
        """
        counts: dict[str, float] = {}
        for i, (table, sums) in enumerate(zip(self._tables, self._sums().tolist(), strict=True)):
            taken, lookups, collisions, evictions, rows = sums
            counts |= {
                f"{table.table}/lookups": lookups,
                f"{table.table}/inserts": taken - self._taken[i] + evictions,
                f"{table.table}/collisions": collisions,
                f"{table.table}/evictions": evictions,
                f"{table.table}/occupancy": taken / rows,
            }
            self._taken[i] = taken
            table.reset_counts()
        return counts

    def _sums(self) -> Tensor:
        """[tables, 5] int64 over all ranks: rows taken, look-ups, collisions, evictions, rows."""
        sums = torch.stack([_counts(table) for table in self._tables])
        dist.all_reduce(sums)
        return sums


def _counts(table: HashIdRows) -> Tensor:
    ids = table.identities
    lookups, evictions, rows = ids.new_tensor([table.num_lookups, table.num_evictions, len(ids)])
    return torch.stack([(ids != NO_ROW).sum(), lookups, table.num_collisions, evictions, rows])
