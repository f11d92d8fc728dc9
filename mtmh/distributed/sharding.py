"""Placing the embedding tables on the ranks: constraints, TorchRec's planner, DistributedModelParallel."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec import EmbeddingBagCollection
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.train_pipeline import PrefetchTrainPipelineSparseDist, TrainPipelineSparseDist
from torchrec.distributed.types import CacheParams, ParameterSharding, ShardingEnv, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.types import DataType

from mtmh.config import CommunicationConfig, ShardingConfig, TrainingConfig
from mtmh.distributed.communication import GROUPED, codecs_of
from mtmh.distributed.content_table import CONTENT_ROWS
from mtmh.distributed.hardware import DEVICES, device_like, topology_of
from mtmh.distributed.optimizers import fuse_optimizer
from mtmh.distributed.ranks import Ranks
from mtmh.distributed.raw_id_tables import IdTableSharder
from mtmh.modules.id_tables import HashIdRows

MEMORY_MARGIN = 0.15  # share of a GPU that the tables leave to towers, batches and the loss
INIT_BLOCK_ROWS = 65_536

# These cut a row into pieces with an Adagrad sum each, so results would depend on the plan (see `table_constraints`).
COLUMN_TYPES = (ShardingType.COLUMN_WISE, ShardingType.TABLE_COLUMN_WISE, ShardingType.GRID_SHARD)
_BY_ROWS = ParameterConstraints(
    sharding_types=[ShardingType.ROW_WISE.value], compute_kernels=[EmbeddingComputeKernel.FUSED.value]
)
ROW_TYPES = (ShardingType.TABLE_WISE, ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE)


class TableSharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
    """TorchRec's sharder, with the sharding types that it offers on CUDA only allowed on every device."""

    def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
        """All types; `table_constraints` narrows them down table by table."""
        return [kind.value for kind in (ShardingType.DATA_PARALLEL, *ROW_TYPES, *COLUMN_TYPES)]

    def shard(
        self,
        module: EmbeddingBagCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingBagCollection:
        """The part of this rank.

        Of a table that is cut by rows the ranks add up what they have, and TorchRec divides by the number of ids
        afterwards. Where one is, it divides by it for tables with whole rows too, though their kernel has done so: bags
        of several ids came out too small. It spares only features that it takes for summed ones, so here it does.
        """
        sharded = super().shard(module, params, env, device, module_fqn)
        cut = (ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value)
        for table in module.embedding_bag_configs():
            if params[table.name].sharding_type not in cut:
                sharded._pooling_type_to_rs_features[PoolingType.SUM.value].extend(table.feature_names)
        return sharded


def table_sharders(communication: CommunicationConfig, device: torch.device, seed: int) -> list[Any]:
    """A sharder for each kind of table.

    Args:
        communication: what embeddings are rounded to on their way.
        device: where the ranks compute.
        seed: of rows that one raw id takes over from another.

    Raises:
        ValueError: embeddings cannot travel on this device in the precision that was asked for.
    """
    codecs = codecs_of(communication, device)
    tables = TableSharder(qcomm_codecs_registry=codecs)
    return [tables, IdTableSharder(TableSharder(qcomm_codecs_registry=codecs), seed)]


def shard(
    model: nn.Module,
    sharding: ShardingConfig,
    ranks: Ranks,
    *,
    items_per_step: int,
    training: TrainingConfig | None = None,
    seed: int = 0,
) -> tuple[DistributedModelParallel, ShardingPlan]:
    """Plans the tables, spreads them over the ranks and fills them with their initial values.

    The tables' optimizer runs inside the backward pass; the rest of the model is replicated (DDP). The initial
    values depend on the seed alone, neither on the plan nor on the number of ranks.

    Args:
        model: anything that holds EmbeddingBagCollections, on the meta device; the rest on ``ranks.device``.
        sharding: constraints, and what embeddings are rounded to on their way.
        ranks: where to.
        items_per_step: that all ranks embed together, at most; the planner's estimates follow it.
        training: which optimizer the tables have. ``None``: the model is only asked, with weights that are yet to be
            loaded, so any type of sharding will do.
        seed: of the initial values.

    Returns:
        The sharded model, and the plan for `plan_table`.

    Raises:
        ValueError: a constraint names no table, cannot be honoured, or the tables do not fit.
    """
    tables = tables_of(model)
    optimizer = training.optimizer if training else None
    constraints = table_constraints(tables, sharding, ranks, optimizer=optimizer, buckets=buckets_of(model))
    if training:
        fuse_optimizer(model, training, skip=data_parallel_tables(constraints))
    sharders = table_sharders(sharding.communication, ranks.device, seed)
    planner = EmbeddingShardingPlanner(
        topology=_topology(ranks),
        batch_size=-(-items_per_step // ranks.world_size),
        storage_reservation=FixedPercentageStorageReservation(MEMORY_MARGIN),
        constraints=constraints,
    )
    try:
        plan = planner.collective_plan(model, sharders, dist.group.WORLD)
    except PlannerError as error:
        raise ValueError(f"no sharding plan fits the tables on {ranks.world_size} ranks: {error}") from None
    # init_parameters would draw values that depend on the plan; `_fill_tables` draws them by row.
    sharded = DistributedModelParallel(model, device=ranks.device, plan=plan, sharders=sharders, init_parameters=False)
    if training:
        _fill_tables(sharded, tables, seed)
    return sharded, plan


def train_pipeline(
    sharded: DistributedModelParallel, optimizer: torch.optim.Optimizer, sharding: ShardingConfig, device: torch.device
) -> TrainPipelineSparseDist[Any, Any]:
    """TorchRec's pipeline; if tables lie in host memory, that which fetches the next batch's rows beside this step."""
    kind = PrefetchTrainPipelineSparseDist if sharding.uvm_caching else TrainPipelineSparseDist
    return kind(sharded, optimizer, device, execute_all_batches=True)


def table_constraints(
    tables: dict[str, EmbeddingBagConfig],
    sharding: ShardingConfig,
    ranks: Ranks,
    *,
    optimizer: Literal["rowwise_adagrad", "adagrad"] | None,
    buckets: Mapping[str, int],
) -> dict[str, ParameterConstraints]:
    """Constraints of the planner, table by table.

    Row-wise Adagrad keeps one sum of squared gradients a row; cut by columns it would keep one a piece, which
    changes the result and cannot be loaded under another plan. So the column types need full Adagrad. Data-parallel
    tables are trained outside the backward pass, which is slower, so they are never chosen unasked.

    Args:
        tables: of the model, by name.
        sharding: what is asked for.
        ranks: this process among the others.
        optimizer: of the tables; ``None``: the model does not train.
        buckets: of each table of raw ids.

    Raises:
        ValueError: a setting names tables that are not there, a column type meets row-wise Adagrad, or the device
            cannot do what was asked for.
    """
    for setting in ("tables", "uvm_caching"):
        unknown = sorted(set(getattr(sharding, setting)) - set(tables))
        if unknown:
            raise ValueError(
                f"sharding.{setting} names no table: {', '.join(unknown)}; the tables are {', '.join(tables)}"
            )
    if ranks.device.type == "cpu":
        _refuse_on_cpu(tables, sharding)
    rowwise = optimizer == "rowwise_adagrad"
    free = [ShardingType.TABLE_WISE, ShardingType.ROW_WISE]
    travels = {sharding.communication.forward, sharding.communication.backward}
    in_groups = ", ".join(sorted(travels & GROUPED))
    free += [ShardingType.TABLE_ROW_WISE] if ranks.world_size > ranks.local_world_size and not in_groups else []
    free += [] if rowwise else [ShardingType.COLUMN_WISE]
    constraints = {}
    for name, table in tables.items():
        if name == CONTENT_ROWS:
            constraints[name] = _BY_ROWS
            continue
        if name in buckets:
            constraints[name] = _id_table_constraint(name, buckets[name], sharding, ranks)
            continue
        wanted = sharding.tables.get(name, sharding.default)
        if rowwise and wanted in {kind.value for kind in COLUMN_TYPES}:
            raise ValueError(
                f"sharding of table {name}: {wanted} cuts rows, which rowwise_adagrad does not survive; "
                f"set training.optimizer=adagrad or choose a type that keeps rows whole"
            )
        if in_groups and wanted == ShardingType.TABLE_ROW_WISE.value:
            raise ValueError(
                f"sharding of table {name}: {wanted} trained wrongly on embeddings that travel as int8 and mx4, so "
                f"{in_groups} is refused with it; set sharding.communication to fp16 or bf16, or choose another type"
            )
        cached = sharding.uvm_caching.get(name)
        kernel = EmbeddingComputeKernel.FUSED
        if wanted == ShardingType.DATA_PARALLEL.value:
            kernel = EmbeddingComputeKernel.DENSE
        if cached is not None:
            if kernel == EmbeddingComputeKernel.DENSE:
                raise ValueError(f"sharding of table {name}: a data_parallel table has no cache; drop uvm_caching")
            kernel = EmbeddingComputeKernel.FUSED_UVM_CACHING
        constraints[name] = ParameterConstraints(
            sharding_types=[wanted] if wanted else [kind.value for kind in free],
            # Pinned: otherwise a table that does not fit silently becomes a cached table in host memory.
            compute_kernels=[kernel.value],
            # With `train_pipeline` rows of the next step come while this one still writes: the kernel must know.
            cache_params=CacheParams(load_factor=cached, prefetch_pipeline=optimizer is not None) if cached else None,
            # The planner's own minimum, 32, leaves narrow tables whole.
            min_partition=_column_width(table.embedding_dim) if wanted in {k.value for k in COLUMN_TYPES} else None,
        )
    return constraints


def _refuse_on_cpu(tables: Mapping[str, EmbeddingBagConfig], sharding: ShardingConfig) -> None:
    if any(table.data_type == DataType.BF16 for table in tables.values()):
        raise ValueError(
            "model.embedding_dtype: FBGEMM does not train bf16 tables on the CPU; set fp32 or fp16, or "
            "training.device=cuda"
        )
    if sharding.uvm_caching:
        raise ValueError(
            f"sharding.uvm_caching ({', '.join(sharding.uvm_caching)}) caches rows of host memory on a GPU; on "
            f"training.device=cpu all tables are in host memory: drop it"
        )


def _id_table_constraint(name: str, buckets: int, sharding: ShardingConfig, ranks: Ranks) -> ParameterConstraints:
    """By rows, whatever the default: TorchRec moves ids to the rank of their bucket."""
    if name in sharding.uvm_caching:
        raise ValueError(f"sharding.uvm_caching: table {name} is of raw ids (model.id_tables) and stays on the GPU")
    wanted = sharding.tables.get(name, ShardingType.ROW_WISE.value)
    if wanted != ShardingType.ROW_WISE.value:
        raise ValueError(
            f"sharding of table {name}: a table of raw ids (model.id_tables) is cut row_wise, not {wanted}"
        )
    if buckets % ranks.world_size:
        raise ValueError(
            f"{ranks.world_size} ranks cannot share the {buckets} buckets of table {name} evenly; run on a number of "
            f"ranks that divides model.id_tables.{name}.buckets, or set it before the first training"
        )
    return _BY_ROWS


def plan_table(plan: ShardingPlan) -> Table:
    """The chosen plan, one line a table, for people."""
    view = Table("table", "sharding", "kernel", "ranks", "shards (rows x columns)", title="Embedding tables")
    for module_plan in plan.plan.values():
        for name, placed in module_plan.items():
            spec = placed.sharding_spec
            sizes = [] if spec is None else [" x ".join(map(str, s.shard_sizes)) for s in spec.shards]
            shown = ", ".join(sizes[:4]) + (f", ... ({len(sizes)})" if len(sizes) > 4 else "")
            where = "all" if spec is None else ",".join(map(str, sorted(set(placed.ranks or []))))
            view.add_row(name, placed.sharding_type, placed.compute_kernel, where, shown or "whole copy a rank")
    return view


def local_shards(value: Tensor | ShardedTensor) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """The pieces of a state entry that this rank holds: (offsets, piece); a replicated tensor is one piece."""
    if isinstance(value, ShardedTensor):
        for piece in value.local_shards():
            yield tuple(piece.metadata.shard_offsets), piece.tensor
    else:
        yield (0,) * value.dim(), value


def tables_of(model: nn.Module) -> dict[str, EmbeddingBagConfig]:
    """All tables of a model that is not sharded yet, by name."""
    collections = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]
    return {table.name: table for ebc in collections for table in ebc.embedding_bag_configs()}


def buckets_of(model: nn.Module) -> dict[str, int]:
    """The buckets of each table of raw ids, by name."""
    return {rows.table: rows.buckets() for rows in model.modules() if isinstance(rows, HashIdRows)}


def data_parallel_tables(constraints: Mapping[str, ParameterConstraints]) -> set[str]:
    """Names of the tables of which every rank has a copy."""
    copied = [ShardingType.DATA_PARALLEL.value]
    return {name for name, constraint in constraints.items() if constraint.sharding_types == copied}


def _column_width(dim: int) -> int:
    """Half the width where the kernel's multiples of 4 allow it."""
    return dim // 2 if dim % 8 == 0 else dim


def _topology(ranks: Ranks) -> Topology:
    """This machine as TorchRec's planner sees it, with the bandwidths that ``mtmh plan`` assumes for its kind."""
    host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.local_world_size
    if ranks.device.type == "cpu":
        return topology_of(DEVICES["cpu"], ranks.world_size, ranks.local_world_size, 0, host_memory)
    gpu = torch.cuda.get_device_properties(ranks.device)
    device = device_like(gpu.name, gpu.total_memory)
    return topology_of(device, ranks.world_size, ranks.local_world_size, gpu.total_memory, host_memory)


@torch.no_grad()
def _fill_tables(sharded: DistributedModelParallel, tables: dict[str, EmbeddingBagConfig], seed: int) -> None:
    """Uniform values in the range of the table's settings, drawn for blocks of rows by (seed, table, block)."""
    for key, value in sharded.state_dict().items():
        table = tables.get(key.split(".")[-2]) if key.endswith(".weight") else None
        if table is None or table.name == CONTENT_ROWS:  # which has rows of its own
            continue
        for offsets, piece in local_shards(value):
            _fill_piece(piece, offsets, table, seed)


def _fill_piece(piece: Tensor, offsets: tuple[int, ...], table: EmbeddingBagConfig, seed: int) -> None:
    (first_row, first_column), (num_rows, num_columns) = offsets, piece.shape
    for block in range(first_row // INIT_BLOCK_ROWS, -(-(first_row + num_rows) // INIT_BLOCK_ROWS)):
        block_row = block * INIT_BLOCK_ROWS
        key = hashlib.sha256(f"{seed}/{table.name}/{block}".encode()).digest()
        generator = torch.Generator(piece.device).manual_seed(int.from_bytes(key[:8], "little") >> 1)
        values = torch.empty(
            min(INIT_BLOCK_ROWS, table.num_embeddings - block_row), table.embedding_dim, device=piece.device
        ).uniform_(table.get_weight_init_min(), table.get_weight_init_max(), generator=generator)
        start, stop = max(first_row, block_row), min(first_row + num_rows, block_row + len(values))
        piece[start - first_row : stop - first_row] = values[
            start - block_row : stop - block_row, first_column : first_column + num_columns
        ].to(piece.dtype)
