"""Planning a run on machines that are not there: placement of the tables, memory, time of a step, remedies.

Planner, constraints, bandwidths and memory margin are those of training (`sharding.shard`); what a step takes beside
the tables is calculated (`step_cost`). As in training, each id feature counts as one value an item; one with many
values costs that many times the input and the lookups estimated here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError, ShardingOption
from torchrec.distributed.types import ShardingType
from torchrec.types import DataType

from mtmh.artifacts import MANIFEST
from mtmh.config import Config, LossConfig, ModelConfig, PlanConfig, ShardingConfig, TrainingConfig
from mtmh.data.arrays import open_array
from mtmh.data.content_store import EMBEDDINGS
from mtmh.data.dataset import open_dataset
from mtmh.data.schema import FeatureSchema, IdFeature
from mtmh.distributed.content_table import CONTENT_ROWS, ContentTable
from mtmh.distributed.hardware import GIB, Cluster
from mtmh.distributed.optimizers import fuse_optimizer
from mtmh.distributed.ranks import Ranks
from mtmh.distributed.sharding import (
    MEMORY_MARGIN,
    buckets_of,
    data_parallel_tables,
    table_constraints,
    table_sharders,
    tables_of,
)
from mtmh.modules.id_tables import HashIdRows
from mtmh.training.model_builder import build_model
from mtmh.training.step_cost import StepCost, step_cost
from mtmh.training.task import items_per_step

STAGES = ("fwd_compute", "fwd_comms", "bwd_compute", "bwd_comms")


class DoesNotFit(ValueError):
    """No plan holds the tables; the message says which table, by how much, and what would help."""


@dataclass(frozen=True)
class TablePlan:
    """Placement of one table; ``ranks`` ascend, ``weight_bytes`` counts every copy."""

    name: str
    num_rows: int
    dim: int
    data_type: str
    sharding_type: str
    kernel: str
    ranks: list[int]
    weight_bytes: int


@dataclass
class RankMemory:
    """Memory of one rank, bytes.

    ``id_maps``: which raw id owns each row, and when it was last seen. ``buffers``: ids that come in and pooled
    embeddings that go out, in one step. The rest as in `StepCost`, the activations with the batch.
    """

    weights: int = 0
    optimizer: int = 0
    id_maps: int = 0
    buffers: int = 0
    towers: int = 0
    batch: int = 0
    negatives: int = 0
    loss: int = 0

    @property
    def tables(self) -> int:
        """That of the tables."""
        return self.weights + self.optimizer + self.id_maps + self.buffers

    @property
    def total(self) -> int:
        """All of it."""
        return self.tables + self.towers + self.batch + self.negatives + self.loss


@dataclass(frozen=True)
class StageTime:
    """One part of a step: its time on the slowest rank, and the table that takes most of it there."""

    name: str
    milliseconds: float
    rank: int
    table: str


@dataclass(frozen=True)
class RunPlan:
    """A plan that fits.

    Attributes:
        source: where the row counts are from.
        cluster: the machines.
        rank_items: items that a rank embeds a step, at most.
        tables: one entry a table, largest first.
        memory: by rank.
        usable: bytes of a rank's memory that the planner may fill with tables and their buffers.
        stages: the embedding part of a step, in `STAGES` order; ranks wait for each other at each communication.
        step: the other parts.
        notes: what else a run would meet.
    """

    source: str
    cluster: Cluster
    rank_items: int
    tables: list[TablePlan]
    memory: list[RankMemory]
    usable: int
    stages: list[StageTime]
    step: StepCost
    notes: list[str]

    @property
    def milliseconds(self) -> float:
        """Estimated time of the embedding part of a step."""
        return sum(stage.milliseconds for stage in self.stages)

    @property
    def step_milliseconds(self) -> float:
        """Estimated time of a whole step; or of making its batch, if that takes longer."""
        step = self.step
        return max(self.milliseconds + step.towers_ms + step.exchange_ms + step.loss_ms, step.loader_ms)

    @property
    def bottleneck(self) -> StageTime:
        """The stage that takes longest."""
        return max(self.stages, key=lambda stage: stage.milliseconds)


def make_plan(config: Config, cluster: Cluster) -> RunPlan:
    """Has TorchRec's planner place the tables of a recipe; no process group, no GPU, no weights.

    Args:
        config: row counts come from its dataset artifact, or from ``plan.rows`` while there is none.
        cluster: the machines.

    Raises:
        DoesNotFit: the tables do not fit.
        ValueError: neither a dataset nor ``plan.rows``, or a sharding setting that cannot be honoured.
    """
    schema, source, num_items = features_of(config.dataset_dir, config.plan)
    content = content_of(config, num_items)
    if content is not None and config.model.content_dim:
        schema = schema.model_copy(update={"content_dim": content.dim})
    in_table = config.content.storage == "table"
    training = config.training.sized()
    case = _Case(config.model, config.sharding, training, config.loss, schema, cluster, content, in_table)
    search = _Search(case)
    options = search.run()
    if options is None:
        raise DoesNotFit(_diagnosis(case, search))
    return RunPlan(
        source=source,
        cluster=cluster,
        rank_items=search.rank_items,
        tables=sorted((_table_plan(option) for option in options), key=lambda table: -table.weight_bytes),
        memory=_memory(options, search, cluster.world_size),
        usable=search.usable,
        stages=[_stage(name, options, cluster.world_size) for name in STAGES],
        step=search.step,
        notes=_notes(case, search),
    )


@dataclass(frozen=True)
class Content:
    """The teacher's embeddings: their number, width and type."""

    num_items: int
    dim: int
    data_type: DataType

    @property
    def num_bytes(self) -> int:
        """Bytes of all of them."""
        return self.num_items * self.dim * (2 if self.data_type == DataType.FP16 else 4)


@dataclass(frozen=True)
class _Case:
    """The question to the planner; remedies change a part of it and ask again."""

    model: ModelConfig
    sharding: ShardingConfig
    training: TrainingConfig
    loss: LossConfig
    schema: FeatureSchema
    cluster: Cluster
    content: Content | None
    content_in_table: bool


class _Search:
    """One run of the planner."""

    def __init__(self, case: _Case) -> None:
        cluster, training = case.cluster, case.training
        model = build_model(case.model, case.schema, torch.device("meta"))
        content = case.content
        self.model = nn.ModuleDict({"model": model})
        if content is not None and case.content_in_table:
            self.model["content"] = ContentTable(content.num_items, content.dim, content.data_type)
        self.tables = tables_of(self.model)
        self.step = step_cost(
            case.model, case.loss, training, case.schema, content.dim if content else 0, model, cluster
        )
        self.reserved = max(MEMORY_MARGIN, self.step.memory / cluster.rank_memory)
        # TorchRec keeps a margin of GPUs only.
        margin = self.reserved if cluster.device.kind == "cuda" else 0.0
        self.usable = int(cluster.rank_memory * (1 - margin))
        ranks = Ranks(0, cluster.world_size, cluster.ranks_per_host, torch.device(cluster.device.kind))
        constraints = {
            # Embeddings leave the kernels as fp32; unasked, the estimators take the type of the table.
            name: replace(constraint, output_dtype=DataType.FP32)
            for name, constraint in table_constraints(
                self.tables, case.sharding, ranks, optimizer=training.optimizer, buckets=buckets_of(self.model)
            ).items()
        }
        fuse_optimizer(self.model, training, skip=data_parallel_tables(constraints))
        self.rank_items = -(-items_per_step(training, case.loss) // cluster.world_size)
        self.sharders = table_sharders(case.sharding.communication, ranks.device, seed=0)
        topology = cluster.topology()
        self.enumerator = EmbeddingEnumerator(topology=topology, batch_size=self.rank_items, constraints=constraints)
        self.planner = EmbeddingShardingPlanner(
            topology=topology,
            batch_size=self.rank_items,
            storage_reservation=FixedPercentageStorageReservation(self.reserved),
            constraints=constraints,
        )

    def run(self) -> list[ShardingOption] | None:
        """The chosen option of each table, ranks filled in; None if nothing fits."""
        try:
            self.planner.plan(self.model, self.sharders)
        except PlannerError:
            return None
        options: list[ShardingOption] | None = self.planner._best_plan  # the plan itself has no estimates
        assert options
        return options

    def least(self) -> dict[str, tuple[int, int]]:
        """For each table the way to cut it that asks least of one rank: bytes of the largest piece, of all pieces."""
        least: dict[str, tuple[int, int]] = {}
        for option in self.enumerator.enumerate(self.model, self.sharders):
            pieces = [_bytes(shard.storage) for shard in option.shards]
            found = (max(pieces), sum(pieces))
            least[option.name] = min(found, least.get(option.name, found))
        return least


def features_of(dataset: Path, plan: PlanConfig) -> tuple[FeatureSchema, str, int]:
    """Features, where they are from, and the number of items.

    Raises:
        ValueError: neither a dataset nor ``plan.rows``.
    """
    if (dataset / MANIFEST).exists():
        summary = open_dataset(dataset).summary
        return summary.features, str(dataset), summary.num_items
    if not plan.rows:
        raise ValueError(
            f"nothing to plan: no dataset at {dataset}, and plan.rows is empty; prepare the dataset or set "
            f"row counts, as in --set 'plan.rows={{item_id: 2000000000, brand: 1000000}}'"
        )
    return (
        FeatureSchema(
            id_features=[IdFeature(name=name, num_rows=rows) for name, rows in plan.rows.items()],
            float_features=[f"float_{i}" for i in range(plan.num_floats)],
        ),
        "plan.rows",
        plan.rows["item_id"],
    )


def content_of(config: Config, num_items: int) -> Content | None:
    """The teacher's embeddings if the run needs them; those of the artifact, or as the recipe has them made.

    Raises:
        ValueError: a table of them is wanted, and nothing tells their width.
    """
    if not config.needs_content:
        return None
    if (config.content_dir / MANIFEST).exists():
        embeddings = open_array(config.content_dir / EMBEDDINGS)
        half = embeddings.dtype == np.float16
        return Content(len(embeddings), embeddings.shape[1], DataType.FP16 if half else DataType.FP32)
    encoder = config.content.encoder
    dim = config.plan.content_dim or (encoder.dim if encoder else 0)
    if dim == 0 and config.content.storage == "table":
        raise ValueError(
            f"plan.content_dim: the width of the content embeddings, for content.storage = table; there are none at "
            f"{config.content_dir} yet"
        )
    return Content(num_items, dim, DataType.FP16 if encoder else DataType.FP32) if dim else None


def _bytes(storage: Any) -> int:
    return int(storage.hbm or storage.ddr)  # on the CPU all is in ddr


def _shards(options: list[ShardingOption]) -> Iterator[tuple[ShardingOption, Any]]:
    for option in options:
        for shard in option.shards:
            yield option, shard


def _table_plan(option: ShardingOption) -> TablePlan:
    cells = sum(shard.size[0] * shard.size[1] for shard in option.shards)
    return TablePlan(
        name=option.name,
        num_rows=option.tensor.shape[0],
        dim=option.tensor.shape[1],
        data_type={torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[option.tensor.dtype],
        sharding_type=option.sharding_type,
        kernel=option.compute_kernel,
        ranks=sorted({shard.rank for shard in option.shards}),
        weight_bytes=cells * option.tensor.element_size(),
    )


def _memory(options: list[ShardingOption], search: _Search, world_size: int) -> list[RankMemory]:
    maps = {rows.table: rows.bytes_a_row for rows in search.model.modules() if isinstance(rows, HashIdRows)}
    step = search.step
    memory = [
        RankMemory(towers=step.towers, batch=step.batch + step.activations, negatives=step.negatives, loss=step.loss)
        for _ in range(world_size)
    ]
    for option, shard in _shards(options):
        rank = memory[shard.rank]
        if option.compute_kernel == EmbeddingComputeKernel.FUSED_UVM_CACHING.value:
            rank.weights += _bytes(shard.storage)  # the cache and what comes and goes; the table is in host memory
            continue
        weights = shard.size[0] * shard.size[1] * option.tensor.element_size()
        optimizer = round(weights * _optimizer_share(option))
        rank.weights += weights
        rank.optimizer += optimizer
        rank.id_maps += shard.size[0] * maps.get(option.name, 0)
        rank.buffers += _bytes(shard.storage) - weights - optimizer
    return memory


def _optimizer_share(option: ShardingOption) -> float:
    """TorchRec's estimate of optimizer bytes a weight byte: nothing for tables without a fused optimizer."""
    (optimizer,) = getattr(option.tensor, "_optimizer_classes", [None])
    if optimizer in (None, torch.optim.SGD):
        return 0.0
    return 1.0 / option.tensor.shape[1] if optimizer.__name__ == "RowWiseAdagrad" else 1.0


def _stage(name: str, options: list[ShardingOption], world_size: int) -> StageTime:
    if name.startswith("bwd"):  # nothing comes back to what does not learn
        options = [option for option in options if option.name != CONTENT_ROWS]
    times = [0.0] * world_size
    for _, shard in _shards(options):
        times[shard.rank] += getattr(shard.perf, name)
    slowest = max(range(world_size), key=times.__getitem__)
    on_slowest = [(getattr(s.perf, name), option.name) for option, s in _shards(options) if s.rank == slowest]
    return StageTime(name.replace("_", " "), times[slowest], slowest, max(on_slowest, default=(0.0, "-"))[1])


def _notes(case: _Case, search: _Search) -> list[str]:
    notes, cluster = [], case.cluster
    travels, uvm_caching, num_shards = case.sharding.communication, case.sharding.uvm_caching, case.training.num_shards
    if case.model.embedding_dtype != "fp32" and cluster.world_size > 1 and travels.forward == "fp32":
        notes.append(
            f"TorchRec's estimator has embeddings of {case.model.embedding_dtype} tables travel so; they travel as "
            f"fp32 unless sharding.communication says otherwise, so allow up to twice the time of both comms"
        )
    if uvm_caching:
        notes.append(
            f"tables in host memory ({', '.join(uvm_caching)}) count with their cache only; the rest "
            f"takes part of {_gib(cluster.rank_host_memory)} of host memory a rank"
        )
    if cluster.device.kind == "cuda" and search.reserved > MEMORY_MARGIN:
        notes.append(
            f"a step takes {search.reserved:.0%} of a GPU beside the tables, which this plan leaves free; training "
            f"leaves {MEMORY_MARGIN:.0%}, so give it tables that do not fill the rest"
        )
    if num_shards % cluster.world_size:
        notes.append(
            f"training would refuse {cluster.world_size} ranks: training.num_shards ({num_shards}) "
            f"must be a multiple of them; change it together with batch_size"
        )
    return notes


def _diagnosis(case: _Case, search: _Search) -> str:
    least, cluster, sharding = search.least(), case.cluster, case.sharding
    over = {name: piece - search.usable for name, (piece, _) in least.items() if piece > search.usable}
    total, room = sum(whole for _, whole in least.values()), search.usable * cluster.world_size
    machines = f"{cluster.num_hosts} x {cluster.ranks_per_host} {cluster.device_name}"
    margin = f" ({_gib(cluster.rank_memory)} less {search.reserved:.0%} for towers, batches and the loss)"
    lines = [
        f"the tables do not fit {machines}: a rank has {_gib(search.usable)} for them"
        f"{margin if cluster.device.kind == 'cuda' else ''}"
    ]
    for name, excess in sorted(over.items(), key=lambda entry: -entry[1]):
        wanted = sharding.tables.get(name, sharding.default)
        lines.append(
            f"  table {name} ({search.tables[name].num_embeddings:,} rows x {search.tables[name].embedding_dim}"
            f"{f', {wanted}' if wanted else ''}) needs {_gib(least[name][0])} on one rank: {_gib(excess)} over"
        )
    if not over:
        largest = max(least, key=lambda name: least[name][1])
        lines.append(
            f"  each table fits on its own, all together need {_gib(total)} of {_gib(room)}"
            f"{f', {_gib(total - room)} over' if total > room else ', but cannot be divided up'}; "
            f"the largest is {largest} with {_gib(least[largest][1])}"
        )
    remedies = list(_remedies(case, search, over, total))
    lines += ["what would fit (tried):", *(f"  {remedy}" for remedy in remedies)] if remedies else []
    lines += [] if remedies else ["no single change of those tried (fp16, row-wise, more hosts) makes it fit"]
    a_rank = -(-total // cluster.world_size)
    if cluster.device.kind == "cuda" and a_rank < cluster.rank_host_memory:
        lines.append(
            f"host memory would hold the tables ({_gib(a_rank)} of {_gib(cluster.rank_host_memory)} a rank) with "
            f"rows cached on the GPU, at the speed of PCIe for the others: --set sharding.uvm_caching.TABLE=0.1"
        )
    return "\n".join(lines)


def _remedies(case: _Case, search: _Search, over: Iterable[str], total: int) -> Iterator[str]:
    """Changes with which the planner does find a plan: settings first, then more hosts."""

    def fits(changed: _Case) -> bool:
        return _Search(changed).run() is not None

    cluster, tables = case.cluster, case.sharding.tables
    by_rows = {ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, None}
    whole = [name for name in over if tables.get(name, case.sharding.default) not in by_rows]
    by_row = {**tables, **dict.fromkeys(whole, "row_wise")}
    cut = replace(case, sharding=case.sharding.model_copy(update={"tables": by_row}))
    half_model = case.model.model_copy(update={"embedding_dtype": "fp16"})
    cut_flags = " ".join(f"--set sharding.tables.{name}=row_wise" for name in whole)
    half_flags = "--set model.embedding_dtype=fp16"
    found = []
    if whole and fits(cut):
        found.append(cut_flags)
    if case.model.embedding_dtype == "fp32":
        if fits(replace(case, model=half_model)):
            found.append(half_flags)
        elif whole and not found and fits(replace(cut, model=half_model)):
            found.append(f"{half_flags} {cut_flags}")
    yield from found
    if cut_flags in found:  # more hosts are no alternative to cutting the table
        return
    fewest = max(cluster.num_hosts + 1, math.ceil(total / (cluster.ranks_per_host * search.usable)))
    for num_hosts in (fewest, fewest + 1, 2 * fewest):
        if fits(replace(cut, cluster=replace(cluster, num_hosts=num_hosts))):
            yield f"--hosts {num_hosts} {cut_flags}".rstrip()
            return


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:,.2f} GiB"
