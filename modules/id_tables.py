"""Tables of raw 64-bit ids: a hash finds or makes the row of an id (multi-probe zero-collision hashing, "hash ZCH")."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fbgemm_gpu  # noqa: F401  (registers the operators)
import torch
from torch import Tensor
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.hash_mc_evictions import HashZchEvictionConfig, HashZchEvictionPolicyName
from torchrec.modules.hash_mc_modules import HashZchManagedCollisionModule
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from mtmh.specs import IdTable

from .sparse_nn import build_ebc

NO_ROW = -1  # the row of an id without one, and the identity of a row without an id
_BITS = 2**63 - 1  # negative numbers mark what is absent
_CHUNK_IDS = 16_384  # bounds the memory of a search for free rows: this many ids times ``max_probe``
_NEAR = 8  # rows that are looked at first: in a table with room one of them is free
_NEVER = torch.iinfo(torch.int64).max


class HashIdRows(HashZchManagedCollisionModule):  # type: ignore[misc]
    """Map of ids to rows: TorchRec's hash ZCH module, that also trains on the CPU and counts what it does.

    It differs from its base class in this. Ids are scrambled first: their remainder names the bucket, and ids that
    count in tens would leave most buckets empty. An id without a row leaves its bag instead of sharing the row of
    another, so no two ids ever train one row. The clock of evictions counts steps of training instead of hours of the
    day, so that a run can be repeated and resumed. FBGEMM only looks up; who inserts and evicts is this class, by
    the same operations on CPU and GPU: FBGEMM has no insertion for the CPU, and in that for GPUs one new id that comes
    from several ranks may take two rows, and threads race, so that an id of this step may lose its row. Here lower ids
    go first, and the result depends neither on the order in a batch nor on the number of ranks.

    Only sharded modules start evicted rows afresh: TorchRec's unsharded collection has no optimizer state to reset.

    Attributes:
        now: the clock: steps of training, the present one included, over all runs; who trains counts it up.
        num_lookups: ids looked up in training since it was last set to 0; so for all of these.
        num_evictions: rows taken from one id for another.
        num_collisions: [] int64, look-ups of ids that went without a row; on the device, to spare it a wait.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with _without_advice():
            super().__init__(*args, **kwargs)
        self.now = 1
        self.reset_counts()

    @property
    def table(self) -> str:
        """Name of the table."""
        assert self._name is not None
        return str(self._name)

    @property
    def bytes_a_row(self) -> int:
        """Memory of the map, besides the weights."""
        parts = [self.identities] if self.last_seen is None else [self.identities, self.last_seen]
        return sum(part.element_size() for part in parts)

    @property
    def identities(self) -> Tensor:
        """[R] int64, the `scrambled` id of each row here, `NO_ROW` for none."""
        identities: Tensor = self._hash_zch_identities.data
        return identities.view(-1)

    @property
    def last_seen(self) -> Tensor | None:
        """[R] int32, the clock when the row's id was last seen plus the time it may live; None without eviction."""
        metadata: Tensor | None = self._hash_zch_metadata
        return None if metadata is None else metadata.view(-1)

    def newest(self) -> Tensor:
        """[] int64, the clock when an id was last seen here; 0 if none was, or without eviction."""
        if self.last_seen is None:
            return self.identities.new_zeros(())
        return (self.last_seen.max().long() - self._lifetime).clamp(min=0)

    def reset_counts(self) -> None:
        """Sets all counts to 0."""
        self.num_lookups = 0
        self.num_evictions = 0
        self.num_collisions = torch.zeros((), dtype=torch.int64, device=self._device)

    def preprocess(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Scrambles ids; a sharded collection calls it before it sends ids to their ranks."""
        return {
            name: JaggedTensor(
                values=scrambled(feature.values()), lengths=feature.lengths(), weights=feature.weights_or_none()
            )
            for name, feature in features.items()
        }

    def forward(self, features: dict[str, JaggedTensor], mutate_miss_lengths: bool = True) -> dict[str, JaggedTensor]:
        """Raw ids to rows, where nothing is sharded; see `remap`."""
        return self.remap(self.preprocess(features), mutate_miss_lengths)

    @torch.no_grad()
    def remap(
        self,
        features: dict[str, JaggedTensor],
        mutate_miss_lengths: bool = True,
        write_weights: Tensor | None = None,
    ) -> dict[str, JaggedTensor]:
        """Ids to rows; in training, new ids get rows first.

        Args:
            features: bags of scrambled ids.
            mutate_miss_lengths: must be on: ids without a row leave their bags.
            write_weights: of the base class, not used.

        Returns:
            under the same names bags of rows, counted from the start of the whole table.
        """
        assert mutate_miss_lengths
        assert write_weights is None
        assert not self._evicted_indices
        return {name: self._remap_feature(feature) for name, feature in features.items()}

    def _remap_feature(self, feature: JaggedTensor) -> JaggedTensor:
        offset: Tensor | None = self._output_global_offset_tensor
        first = None if offset is None else offset.to(self.device)
        ids, sizes, offsets = self.input_mapper(feature.values(), first)
        rows = self._find_or_insert(ids, sizes, offsets) if self.training else self._find(ids, sizes, offsets)
        found = rows != NO_ROW
        if self.training:
            self.num_lookups += len(ids)
            self.num_collisions = (~found).sum() + self.num_collisions
        lengths = torch.ops.fbgemm.segment_sum_csr(1, feature.offsets(), found.to(feature.lengths().dtype))
        rows = rows[found]
        return JaggedTensor(values=rows if first is None else rows + first, lengths=lengths)

    def _find(self, ids: Tensor, sizes: Tensor, offsets: Tensor, *, max_probe: int | None = None) -> Tensor:
        """The rows that ids have; with ``max_probe`` 0 those that the hash names."""
        rows: Tensor = torch.ops.fbgemm.zero_collision_hash(
            input=ids,
            identities=self._hash_zch_identities,
            max_probe=self._max_probe if max_probe is None else max_probe,
            circular_probe=True,
            exp_hours=-1,
            readonly=True,
            local_sizes=sizes,
            offsets=offsets,
            metadata=None,
            output_on_uvm=False,
            disable_fallback=max_probe is None,
            _modulo_identity_DPRECATED=False,
            input_metadata=None,
            eviction_threshold=-1,
            eviction_policy=0,
            opt_in_prob=-1,
            num_reserved_slots=-1,
            opt_in_rands=None,
            runtime_meta=None,
        )[0]
        return rows

    @property
    def _lifetime(self) -> int:
        assert self._eviction_config is not None
        return self._eviction_config.single_ttl or 0

    def _find_or_insert(self, ids: Tensor, sizes: Tensor, offsets: Tensor) -> Tensor:
        identities, last_seen = self.identities, self.last_seen
        rows = self._find(ids, sizes, offsets)
        known = rows != NO_ROW
        if last_seen is not None:
            last_seen[rows[known]] = self.now + self._lifetime
        (missing,) = torch.nonzero(~known, as_tuple=True)
        if not len(missing):
            return rows
        new, place = torch.unique(ids[missing], return_inverse=True)
        example = torch.empty_like(new).index_copy_(0, place, missing)  # any place of the id: all have one bucket
        sizes, offsets = sizes[example], offsets[example]
        home = self._find(new, sizes, offsets, max_probe=0) - offsets

        taken = torch.full_like(new, NO_ROW)
        evicted: list[Tensor] = []
        waiting = torch.arange(len(new), device=new.device)
        while len(waiting):
            parts = torch.split(waiting, _CHUNK_IDS)
            choice = torch.cat([self._choose(home[part], sizes[part], offsets[part]) for part in parts])
            waiting, choice = waiting[choice != NO_ROW], choice[choice != NO_ROW]
            # Of those that chose one row the lowest id gets it; the others choose again.
            chosen, rival = torch.unique(choice, return_inverse=True)
            winner = torch.full_like(chosen, len(new)).scatter_reduce_(0, rival, waiting, "amin")
            evicted.append(chosen[identities[chosen] != NO_ROW])
            identities[chosen] = new[winner]
            taken[winner] = chosen
            if last_seen is not None:
                last_seen[chosen] = self.now + self._lifetime
            waiting = waiting[taken[waiting] == NO_ROW]
        rows[missing] = taken[place]
        if len(rows_of_others := torch.cat(evicted)):
            self.num_evictions += len(rows_of_others)
            self._evicted_indices.append(rows_of_others)
        return rows

    def _choose(self, home: Tensor, sizes: Tensor, offsets: Tensor) -> Tensor:
        """The row that each id would take now, `NO_ROW` if there is none: a free one before one to evict."""
        chosen, cost = self._cheapest(home, sizes, offsets, min(_NEAR, self._max_probe))
        (far,) = torch.nonzero(cost >= self._max_probe, as_tuple=True)  # nothing free near by
        if len(far):
            chosen[far] = self._cheapest(home[far], sizes[far], offsets[far], self._max_probe)[0]
        return chosen

    def _cheapest(self, home: Tensor, sizes: Tensor, offsets: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The best of the first ``width`` rows that each id may take, and its cost.

        The cost of a free row, or one past its time, is its distance, so below ``max_probe``; to evict the least
        recently seen costs more, the more the later it was seen.
        """
        distance = torch.arange(width, device=home.device)
        rows = offsets[:, None] + (home[:, None] + distance) % sizes[:, None]  # [N, width]
        free = self.identities[rows] == NO_ROW
        if self.last_seen is None:
            cost = torch.where(free, distance, _NEVER)
        else:
            last_seen = self.last_seen[rows].long()
            lru = self._eviction_policy_name is HashZchEvictionPolicyName.LRU_EVICTION
            stale = (1 + last_seen) * self._max_probe + distance if lru else distance
            cost = torch.where(free, distance, torch.where(last_seen < self.now, stale, _NEVER))
        best = cost.min(dim=1)
        return torch.where(best.values == _NEVER, NO_ROW, rows.gather(1, best.indices[:, None]).squeeze(1)), best.values


@contextmanager
def _without_advice() -> Iterator[None]:
    """Holds back what TorchRec always says when it makes such a module: nothing that its user could act on."""
    logger = logging.getLogger("torchrec.modules.mc_modules")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="To copy construct from a tensor", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)


def scrambled(ids: Tensor) -> Tensor:
    """A bijection of 63-bit numbers that leaves no pattern; of the sign bit nothing remains.

    Multiplications and shifts as in the finaliser of SplitMix64.

    Args:
        ids: int64, any shape.

    Returns:
        the same shape, 0 to 2^63 - 1.
    """
    ids = ids & _BITS
    ids = ((ids ^ (ids >> 30)) * 0x3F58476D1CE4E5B9) & _BITS
    ids = ((ids ^ (ids >> 27)) * 0x14D049BB133111EB) & _BITS
    return ids ^ (ids >> 31)


def build_managed_ebc(
    tables: dict[str, IdTable],
    dims: dict[str, int],
    data_type: DataType = DataType.FP32,
    device: torch.device | str = "cpu",
) -> ManagedCollisionEmbeddingBagCollection:
    """One mean-pooled table of raw ids for each feature; table and feature share the name.

    Args:
        tables: feature name to its table.
        dims: feature name to width of its table; a multiple of 4.
        data_type: as in `build_ebc`.
        device: where weights and ids live; ``"meta"`` for a model that a TorchRec sharder materialises.

    Raises:
        ValueError: ``tables`` and ``dims`` name different features, or a width is out of range.

    Example::

        >>> from torchrec import KeyedJaggedTensor
        >>> managed = build_managed_ebc({"item_id": IdTable(rows=8, buckets=2)}, {"item_id": 4})
        >>> ids = KeyedJaggedTensor(keys=["item_id"], values=torch.tensor([2**60, 7]), lengths=torch.tensor([1, 1]))
        >>> pooled, _ = managed(ids)  # in training mode: both ids get a row
        >>> pooled["item_id"].shape
        torch.Size([2, 4])
        >>> unseen = KeyedJaggedTensor(keys=["item_id"], values=torch.tensor([8]), lengths=torch.tensor([1]))
        >>> managed.eval()(unseen)[0]["item_id"].tolist()
        [[0.0, 0.0, 0.0, 0.0]]
    """
    device = torch.device(device)
    ebc = build_ebc({name: table.rows for name, table in tables.items()}, dims, data_type, device)
    rows = {name: _hash_rows(name, table, device) for name, table in tables.items()}
    return ManagedCollisionEmbeddingBagCollection(ebc, ManagedCollisionCollection(rows, ebc.embedding_bag_configs()))


def _hash_rows(name: str, table: IdTable, device: torch.device) -> HashIdRows:
    eviction: dict[str, Any] = {}
    if table.eviction != "none":
        kind = HashZchEvictionPolicyName
        eviction = {
            "eviction_policy_name": kind.LRU_EVICTION if table.eviction == "lru" else kind.SINGLE_TTL_EVICTION,
            "eviction_config": HashZchEvictionConfig(features=[name], single_ttl=table.ttl_steps or 0),
        }
    return HashIdRows(
        zch_size=table.rows,
        device=device,
        total_num_buckets=table.buckets,
        max_probe=min(table.max_probe, table.rows // table.buckets),
        name=name,
        **eviction,
    )
