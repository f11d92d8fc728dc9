"""The cases measured: parameters of a lookup, its indices, the bytes it moves, the sweeps of a preset."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor

FORWARD = "forward"
TRAIN = "forward+backward"

DType = Literal["fp32", "fp16", "int8"]
ELEMENT_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
INT8_ROW_ALIGNMENT = 16  # FBGEMM pads a quantised row (values, fp16 scale, fp16 shift) to a multiple of this

SHARDINGS = ("table_wise", "column_wise", "row_wise", "table_row_wise", "grid_shard", "data_parallel")


@dataclass(frozen=True)
class Case:
    """One lookup: ``batch`` bags, each the sum of ``pooling`` rows from each of ``tables`` tables ``[rows, width]``.

    Attributes:
        rows: Rows of one table.
        width: Columns of a table.
        pooling: Rows a bag reads from one table.
        skew: Exponent of the Zipf distribution of the indices; 0 is uniform.
        dtype: Stored type of the rows.
        batch: Bags in a step, over all ranks.
        tables: Number of tables, one feature each.
        threads: Intra-op threads of one process (of each rank when sharded).
        ranks: Processes that share the step.
        index_bits: 32 or 64.
        weighted: Each looked-up row is multiplied by a weight of its own.
        bounds_check: FBGEMM's check of the indices before the lookup; the other kernels ignore it.
        optimizer: How ``nn.EmbeddingBag`` applies its sparse gradient. FBGEMM always fuses row-wise Adagrad.
    """

    rows: int
    width: int = 128
    pooling: int = 20
    skew: float = 0.0
    dtype: DType = "fp32"
    batch: int = 2048
    tables: int = 1
    threads: int = 1
    ranks: int = 1
    index_bits: Literal[32, 64] = 64
    weighted: bool = False
    bounds_check: Literal["none", "warning", "fatal"] = "warning"
    optimizer: Literal["sgd", "adagrad"] = "sgd"

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row; for int8 with its scale and shift, padded as FBGEMM pads them."""
        if self.dtype == "int8":
            return math.ceil((self.width + 4) / INT8_ROW_ALIGNMENT) * INT8_ROW_ALIGNMENT
        return self.width * ELEMENT_BYTES[self.dtype]

    @property
    def table_bytes(self) -> int:
        """Bytes of all tables."""
        return self.tables * self.rows * self.row_bytes

    @property
    def lookups(self) -> int:
        """Rows read by one forward: ``tables x batch x pooling``."""
        return self.tables * self.batch * self.pooling

    def moved_bytes(self, mode: str) -> int:
        """Bytes of rows a step moves.

        Forward reads each looked-up row once: ``lookups x row_bytes``. Backward reads and writes it once more, so
        forward+backward counts three times that. A row looked up twice counts twice; outputs, gradients, indices and
        optimizer state are not counted.
        """
        return self.lookups * self.row_bytes * (3 if mode == TRAIN else 1)

    def key(self) -> str:
        """The parameters as one line, the same for equal cases of two runs."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Measurement:
    """One kernel in one mode on one case, and where in which curve it stands."""

    sweep: str
    x: str | float
    kernel: str
    mode: str
    case: Case

    @property
    def sharded(self) -> bool:
        """True if it runs in processes of its own, be it a single one."""
        return self.kernel.startswith("sharded:")

    @property
    def figure(self) -> tuple[str, str, Case]:
        """The key of what is timed; several sweeps may share it."""
        return self.kernel, self.mode, self.case


def zipf_indices(rows: int, count: int, skew: float, generator: torch.Generator) -> Tensor:
    """Draw row numbers with probability proportional to ``rank ** -skew``, the ranks scattered over the table.

    The continuous density ``x ** -skew`` on ``[1, rows + 1)`` is inverted in closed form and rounded down. Ranks become
    rows by ``rank * p mod rows`` with ``p`` coprime to ``rows``, so that popular rows are not neighbours.

    Returns:
        ``[count]`` int64 in ``[0, rows)``.
    """
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    if skew == 0.0:
        ranks = uniform * rows
    elif skew == 1.0:
        ranks = torch.exp(uniform * math.log(rows + 1)) - 1
    else:
        power = 1.0 - skew
        ranks = (uniform * ((rows + 1) ** power - 1) + 1) ** (1 / power) - 1
    step = next(prime for prime in (2_654_435_761, 2_246_822_519, 3_266_489_917) if math.gcd(prime, rows) == 1)
    return ranks.long().clamp_(0, rows - 1) * step % rows


def index_sets(case: Case, cache_bytes: int, seed: int = 0) -> list[Tensor]:
    """Draw index sets, so many that a cache of ``cache_bytes`` does not keep their rows from one turn to the next.

    Returns:
        4 to 32 tensors ``[tables * batch * pooling]`` int64, table by table. Together they read at least four times
        ``cache_bytes`` unless 32 sets are too few for it.
    """
    generator = torch.Generator().manual_seed(seed)
    step_bytes = case.lookups * case.row_bytes
    num_sets = min(max(math.ceil(4 * cache_bytes / step_bytes), 4), 32)
    return [zipf_indices(case.rows, case.lookups, case.skew, generator) for _ in range(num_sets)]


@dataclass(frozen=True)
class Preset:
    """The base case, the values of each one-factor sweep around it, and the time given to each figure."""

    base: Case
    values: dict[str, tuple[Any, ...]]
    sharding_base: Case
    options: bool
    seconds: float  # of measured time for each figure; at least ``samples`` samples are taken whatever they cost
    samples: int


def preset(name: str, device: str, threads: int, ranks: int) -> Preset:
    """The named preset for a device.

    Args:
        name: ``smoke`` (seconds, for tests), ``quick`` or ``full``.
        device: ``cpu`` or ``cuda``.
        threads: Threads of one process.
        ranks: Ranks of the sharded cases; 0 leaves them out.
    """
    cuda = device == "cuda"
    base = Case(rows=10_000_000 if cuda else 1_000_000, batch=16_384 if cuda else 2048, threads=threads)
    sharding = Case(
        rows=1_000_000 if cuda else 100_000,
        batch=base.batch // max(ranks, 1) * max(ranks, 1),
        tables=2 * max(ranks, 1),
        threads=threads,
    )
    dtypes = ("fp32", "fp16", "int8")
    if name == "smoke":
        small: dict[str, Any] = {"rows": 2000, "width": 32, "pooling": 4, "batch": 64}
        values: dict[str, tuple[Any, ...]] = {
            "rows": (1000, 2000),
            "width": (32, 64),
            "pooling": (1, 4),
            "skew": (0.0, 1.2),
            "batch": (32, 64),
            "dtype": dtypes,
        }
        return Preset(
            replace(base, **small), values, replace(sharding, **small | {"batch": 32 * max(ranks, 1)}), False, 0.0, 3
        )
    if name == "quick":
        values = {
            "rows": (100_000, 1_000_000, 5_000_000),
            "width": (32, 128, 512),
            "pooling": (1, 20, 100),
            "skew": (0.0, 0.8, 1.2),
            "batch": (256, base.batch, 4 * base.batch),
            "dtype": dtypes,
        }
        return Preset(base, values, sharding, True, 0.2, 5)
    if name == "full":
        values = {
            "rows": (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000),
            "width": (32, 64, 128, 256, 512),
            "pooling": (1, 5, 20, 50, 100),
            "skew": (0.0, 0.4, 0.8, 1.0, 1.2),
            "batch": (128, 512, 2048, 8192, 32_768) + ((131_072,) if cuda else ()),
            "dtype": dtypes,
        }
        return Preset(base, values, sharding, True, 0.6, 10)
    raise ValueError(f"--preset is {name!r}: expected smoke, quick or full")


def measurements(preset: Preset, device: str, ranks: int) -> Iterator[Measurement]:
    """All measurements of a preset, one factor at a time around the base case.

    The unsharded TorchRec collection makes a dense gradient of the whole table, so its backward is measured over
    ``rows`` alone: the only factor it depends on.
    """
    for factor, values in preset.values.items():
        for value in values:
            case = replace(preset.base, **{factor: value})
            modes = (FORWARD,) if case.dtype == "int8" else (FORWARD, TRAIN)
            for kernel, mode in _pairs(("embedding_bag", "tbe", "ebc"), modes):
                if (kernel == "ebc" and mode == TRAIN and factor != "rows") or (
                    kernel == "embedding_bag" and case.dtype == "int8"
                ):
                    continue
                yield Measurement(factor, value, kernel, mode, case)
    if preset.options:
        yield from _options(preset.base, device)
    if ranks:
        yield from _sharding(preset.sharding_base, device, ranks)


def evenly(plan: Iterable[Measurement]) -> list[Measurement]:
    """The same measurements in an order that covers all sweeps alike, wherever a run is cut.

    The sweeps take turns, a value each: its first, its last, then what halves the gaps.
    """
    sweeps: dict[str, dict[str | float, list[Measurement]]] = {}
    for measurement in plan:
        sweeps.setdefault(measurement.sweep, {}).setdefault(measurement.x, []).append(measurement)
    in_turn = ([by_value[x] for x in _spread(list(by_value))] for by_value in sweeps.values())
    return [measurement for turn in zip_longest(*in_turn, fillvalue=[]) for group in turn for measurement in group]


def _spread(values: list[Any]) -> list[Any]:
    last = len(values) - 1
    order, gaps = [0, last], [(0, last)]
    for low, high in gaps:  # grows meanwhile
        middle = (low + high) // 2
        if low < middle:
            order.append(middle)
            gaps += [(low, middle), (middle, high)]
    return [values[place] for place in dict.fromkeys(order)]


def _pairs(kernels: Iterable[str], modes: Iterable[str]) -> Iterator[tuple[str, str]]:
    modes = tuple(modes)
    return ((kernel, mode) for kernel in kernels for mode in modes)


def _options(base: Case, device: str) -> Iterator[Measurement]:
    """Variations that change the speed of one kernel on the base case."""
    variants: list[tuple[str, Case]] = [
        ("bounds check: warning (default)", base),
        ("bounds check: none", replace(base, bounds_check="none")),
        ("32-bit indices", replace(base, index_bits=32)),
        ("32-bit indices, no bounds check", replace(base, index_bits=32, bounds_check="none")),
        ("weighted", replace(base, weighted=True)),
    ]
    for name, case in variants:
        for kernel, mode in _pairs(("embedding_bag", "tbe"), (FORWARD, TRAIN)):
            if kernel == "tbe" or case.bounds_check == base.bounds_check:
                yield Measurement("option", name, kernel, mode, case)
    yield Measurement("option", "Adagrad", "embedding_bag", TRAIN, replace(base, optimizer="adagrad"))
    if device == "cpu":
        threads = sorted({2**power for power in range(base.threads.bit_length())} | {base.threads})
        for count in threads:
            for kernel, mode in _pairs(("embedding_bag", "tbe"), (FORWARD, TRAIN)):
                yield Measurement("threads", count, kernel, mode, replace(base, threads=count))
            yield Measurement("threads, int8", count, "tbe", FORWARD, replace(base, threads=count, dtype="int8"))


def _sharding(base: Case, device: str, ranks: int) -> Iterator[Measurement]:
    """The same tables and the same global batch in one process and sharded each way over ``ranks``."""
    for kernel, mode in _pairs(("embedding_bag", "tbe"), (FORWARD, TRAIN)):
        yield Measurement("sharding", f"one process: {kernel}", kernel, mode, base)
    threads = max(1, base.threads // ranks) if device == "cpu" else base.threads
    case = replace(base, ranks=ranks, threads=threads)
    for kernel, mode in _pairs((f"sharded:{sharding}" for sharding in SHARDINGS), (FORWARD, TRAIN)):
        yield Measurement("sharding", kernel.removeprefix("sharded:"), kernel, mode, case)
