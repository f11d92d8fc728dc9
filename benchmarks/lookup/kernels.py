"""The lookup kernels of one process behind one interface: ``nn.EmbeddingBag``, FBGEMM, TorchRec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.inference.modules import quantize_embeddings
from torchrec.types import DataType

from benchmarks.lookup.cases import Case

LEARNING_RATE = 0.01
TORCH_TYPES = {"fp32": torch.float32, "fp16": torch.float16}
TORCHREC_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}
BOUNDS_CHECKS = {"none": BoundsCheckMode.NONE, "warning": BoundsCheckMode.WARNING, "fatal": BoundsCheckMode.FATAL}


class Kernel(Protocol):
    """One way to look rows up and to train them."""

    def prepare(self, indices: Tensor, /) -> Any:
        """Lay one index set out as the kernel wants it; not timed.

        Args:
            indices: ``[tables * batch * pooling]`` int64 on CPU, table by table, bag by bag.
        """

    def forward(self, inputs: Any, /) -> Tensor:
        """Sum the rows of each bag: ``[batch, tables * width]``."""

    def train(self, inputs: Any, /) -> None:
        """Forward, backward and the update of the touched rows."""


def random_tables(case: Case, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Tables ``[rows, width]`` of small random values; fp32 for int8 cases, which are quantised from it."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = TORCH_TYPES.get(case.dtype, torch.float32)
    return [
        torch.empty(case.rows, case.width, dtype=dtype, device=device).uniform_(-0.01, 0.01, generator=generator)
        for _ in range(case.tables)
    ]


class _Inputs:
    """Puts index sets on the device in the case's integer type, with offsets, lengths and weights."""

    def __init__(self, case: Case, device: torch.device) -> None:
        assert case.index_bits == 64 or case.tables * case.rows < 2**31
        self.case, self.device = case, device
        self.dtype = torch.int32 if case.index_bits == 32 else torch.int64
        self.lengths = torch.full((case.tables * case.batch,), case.pooling, dtype=self.dtype, device=device)
        self.offsets = (torch.arange(case.tables * case.batch + 1) * case.pooling).to(device, self.dtype)
        self.weights = torch.ones(case.lookups, device=device) if case.weighted else None

    def indices(self, indices: Tensor) -> Tensor:
        """The indices in the case's type on the device: ``[lookups]``."""
        return indices.to(self.device, self.dtype)


def upstream_gradient(case: Case, device: torch.device) -> Tensor:
    """A random gradient of the output: ``[batch, tables * width]`` float32."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.empty(case.batch, case.tables * case.width, device=device).uniform_(-1, 1, generator=generator)


class EmbeddingBagKernel:
    """``nn.EmbeddingBag`` for each table; sparse gradients, then a step of SGD or Adagrad from ``torch.optim``."""

    def __init__(self, case: Case, tables: list[Tensor]) -> None:
        if case.dtype == "int8":
            raise ValueError("nn.EmbeddingBag has no int8 tables: expected fp32 or fp16")
        self.case, self.inputs = case, _Inputs(case, tables[0].device)
        self.bags = nn.ModuleList(
            nn.EmbeddingBag.from_pretrained(table, freeze=False, mode="sum", sparse=True, include_last_offset=True)
            for table in tables
        )
        weights = self.inputs.weights
        self.weights = None if weights is None else weights[: case.batch * case.pooling].to(tables[0].dtype)
        make = torch.optim.Adagrad if case.optimizer == "adagrad" else torch.optim.SGD
        self.optimizer: Callable[[], torch.optim.Optimizer] | torch.optim.Optimizer
        self.optimizer = lambda: make(self.bags.parameters(), lr=LEARNING_RATE)
        self.gradient = upstream_gradient(case, tables[0].device)

    def prepare(self, indices: Tensor) -> list[Tensor]:
        """Split the indices by table."""
        return list(self.inputs.indices(indices).view(self.case.tables, -1))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """One call a table, outputs side by side."""
        offsets = self.inputs.offsets[: self.case.batch + 1]
        outputs = [bag(rows, offsets, self.weights) for bag, rows in zip(self.bags, inputs, strict=True)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def train(self, inputs: list[Tensor]) -> None:
        """The optimizer's state is made at the first call, so that forward alone does not pay its memory."""
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            self.optimizer = self.optimizer()
        output = self.forward(inputs)
        torch.autograd.backward(output, self.gradient.to(output.dtype))
        self.optimizer.step()
        self.optimizer.zero_grad()


class TableBatchedKernel:
    """FBGEMM's ``SplitTableBatchedEmbeddingBagsCodegen`` with row-wise Adagrad fused into the backward."""

    def __init__(self, case: Case, tables: list[Tensor]) -> None:
        device = tables[0].device
        cuda = device.type == "cuda"
        place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
        self.inputs = _Inputs(case, device)
        self.module = SplitTableBatchedEmbeddingBagsCodegen(
            [(case.rows, case.width, *place) for _ in tables],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
            weights_precision=SparseType(case.dtype),
            output_dtype=SparseType.FP32,
            pooling_mode=PoolingMode.SUM,
            bounds_check_mode=BOUNDS_CHECKS[case.bounds_check],
            device=device,
        )
        for weights, table in zip(self.module.split_embedding_weights(), tables, strict=True):
            weights.copy_(table)
        self.gradient = upstream_gradient(case, device)

    def prepare(self, indices: Tensor) -> Tensor:
        """Only move them."""
        return self.inputs.indices(indices)

    def forward(self, inputs: Tensor) -> Tensor:
        """One call for all tables."""
        return cast(Tensor, self.module(inputs, self.inputs.offsets, self.inputs.weights))

    def train(self, inputs: Tensor) -> None:
        """The update happens inside the backward."""
        torch.autograd.backward(self.forward(inputs), self.gradient)


class QuantisedTableBatchedKernel:
    """FBGEMM's ``IntNBitTableBatchedEmbeddingBagsCodegen``: int8 rows with fp16 scale and shift, inference only."""

    def __init__(self, case: Case, tables: list[Tensor]) -> None:
        device = tables[0].device
        place = EmbeddingLocation.DEVICE if device.type == "cuda" else EmbeddingLocation.HOST
        self.inputs = _Inputs(case, device)
        quantise = torch.ops.fbgemm.FloatOrHalfToFusedNBitRowwiseQuantizedSBHalf
        fused = [quantise(table, 8) for table in tables]  # rows of values, then 4 bytes of scale and shift
        self.module = IntNBitTableBatchedEmbeddingBagsCodegen(
            [("", case.rows, case.width, SparseType.INT8, place) for _ in tables],
            weight_lists=[(rows[:, :-4], rows[:, -4:]) for rows in fused],
            pooling_mode=PoolingMode.SUM,
            output_dtype=SparseType.FP32,
            bounds_check_mode=BOUNDS_CHECKS[case.bounds_check],
            row_alignment=16,
            device=device,
        )

    def prepare(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel wants int32 indices and offsets; it converts others at each call, which is then timed."""
        return self.inputs.indices(indices), self.inputs.offsets

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """One call for all tables."""
        return cast(Tensor, self.module(*inputs, self.inputs.weights))

    def train(self, _: tuple[Tensor, Tensor]) -> None:
        """Not possible."""
        raise ValueError("quantised tables serve inference only: there is no backward")


def collection(case: Case, device: torch.device) -> Any:
    """An unsharded ``EmbeddingBagCollection``: table ``t0`` for feature ``f0``, and so on, sum pooling."""
    return EmbeddingBagCollection(
        device=device,
        is_weighted=case.weighted,
        tables=[
            EmbeddingBagConfig(
                name=f"t{table}",
                num_embeddings=case.rows,
                embedding_dim=case.width,
                feature_names=[f"f{table}"],
                data_type=TORCHREC_TYPES.get(case.dtype, DataType.FP32),
            )
            for table in range(case.tables)
        ],
    )


def side_by_side(output: Any, case: Case) -> Tensor:
    """The columns of a ``KeyedTensor`` in the order of the tables: ``values()`` alone follows the sharding plan."""
    return cast(Tensor, KeyedTensor.regroup([output], [[f"f{table}" for table in range(case.tables)]])[0])


class CollectionKernel:
    """TorchRec's unsharded ``EmbeddingBagCollection``, for int8 its quantised twin.

    Unsharded it is one ``nn.EmbeddingBag`` a table with dense gradients; plain SGD steps over the whole table. The
    ``KeyedJaggedTensor`` is made inside the timed call, as each batch brings a new one and its offsets are computed
    once and kept.
    """

    def __init__(self, case: Case, tables: list[Tensor]) -> None:
        device = tables[0].device
        self.case, self.inputs = case, _Inputs(case, device)
        self.module = collection(case, torch.device("meta"))
        for number, table in enumerate(tables):
            self.module.embedding_bags[f"t{number}"].weight = nn.Parameter(table)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=LEARNING_RATE)
        if case.dtype == "int8":
            model = nn.Sequential(self.module)
            self.module = quantize_embeddings(model, torch.qint8, inplace=True, output_dtype=torch.float)[0].to(device)
        self.keys = [f"f{table}" for table in range(case.tables)]
        self.gradient = upstream_gradient(case, device)

    def prepare(self, indices: Tensor) -> Tensor:
        """Only move them."""
        return self.inputs.indices(indices)

    def forward(self, inputs: Tensor) -> Tensor:
        """Make the sparse batch and look it up."""
        batch = KeyedJaggedTensor(
            keys=self.keys, values=inputs, lengths=self.inputs.lengths, weights=self.inputs.weights
        )
        return side_by_side(self.module(batch), self.case)

    def train(self, inputs: Tensor) -> None:
        """A dense gradient of every table, and a step over all rows."""
        output = self.forward(inputs)
        torch.autograd.backward(output, self.gradient.to(output.dtype))
        self.optimizer.step()
        self.optimizer.zero_grad()


def build(kernel: str, case: Case, tables: list[Tensor]) -> Kernel:
    """The kernel of one process by name, over the given tables (which it may take as its own).

    Raises:
        ValueError: The name is unknown, or the kernel has no tables of the case's type.
    """
    kinds: dict[str, Callable[[Case, list[Tensor]], Kernel]] = {
        "embedding_bag": EmbeddingBagKernel,
        "tbe": QuantisedTableBatchedKernel if case.dtype == "int8" else TableBatchedKernel,
        "ebc": CollectionKernel,
    }
    if kernel not in kinds:
        raise ValueError(f"unknown kernel {kernel!r}: expected one of {', '.join(kinds)}")
    return kinds[kernel](case, tables)
