"""Settings of sharding: where embedding tables go, and how values travel between ranks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mtmh.config.base import Settings

# Without grid_shard: on gloo its embeddings were not those of one rank (TorchRec 1.8).
ShardingType = Literal["data_parallel", "table_wise", "column_wise", "row_wise", "table_row_wise"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8", "mx4"]


class CommunicationConfig(Settings):
    """The types to which pooled embeddings and their gradients are rounded while they travel between ranks.

    ``int8``, ``fp8`` (on CUDA only) and ``mx4`` scale groups of 32 values. Such values cannot be added up, as those of
    tables that are cut by rows are on their way: these travel as fp16, their gradients as bf16.
    """

    forward: Precision = "fp32"
    backward: Precision = "fp32"


class ShardingConfig(Settings):
    """Constraints for TorchRec's planner; a table without one is placed by the planner.

    ``uvm_caching`` names tables that stay in host memory, and the share of their rows that is cached on the GPU.
    """

    default: ShardingType | None = None
    tables: dict[str, ShardingType] = {}
    uvm_caching: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] = {}
    communication: CommunicationConfig = CommunicationConfig()
