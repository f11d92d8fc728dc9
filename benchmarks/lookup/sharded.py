"""TorchRec's sharded collection on real ranks of this host: gloo on CPU, NCCL with one GPU a rank on CUDA."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torchrec import KeyedJaggedTensor
from torchrec.distributed import sharding_plan as plans
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.shard import shard
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from benchmarks.lookup import machine
from benchmarks.lookup.cases import TRAIN, Case, Measurement, index_sets
from benchmarks.lookup.kernels import LEARNING_RATE, collection, side_by_side, upstream_gradient
from benchmarks.lookup.timing import Timing, measure

TIMEOUT = timedelta(minutes=5)
POLL_SECONDS = 0.2


class ShardedKernel:
    """One rank's part of a sharded ``EmbeddingBagCollection``; each rank brings ``batch / ranks`` bags.

    Rows are trained by the row-wise Adagrad fused into FBGEMM's backward; data-parallel tables, which have no fused
    optimizer, by SGD over the all-reduced dense gradient.
    """

    def __init__(self, sharding: str, case: Case, device: torch.device) -> None:
        self.rank, self.device = dist.get_rank(), device
        if case.batch % case.ranks:
            raise ValueError(f"a batch of {case.batch} bags does not divide over {case.ranks} ranks")
        self.local = replace(case, batch=case.batch // case.ranks)
        module = collection(case, torch.device("meta"))
        fused = sharding != "data_parallel"
        if fused:
            apply_optimizer_in_backward(RowWiseAdagrad, module.parameters(), {"lr": LEARNING_RATE})
        self.module = shard(
            module,
            {f"t{table}": self._plan(sharding, case, table) for table in range(case.tables)},
            device=device,
            sharder=EmbeddingBagCollectionSharder(),
        )
        self.optimizer = None if fused else torch.optim.SGD(self.module.parameters(), lr=LEARNING_RATE)
        self.keys = [f"f{table}" for table in range(case.tables)]
        self.lengths = torch.full((case.tables * self.local.batch,), case.pooling, device=device)
        self.gradient = upstream_gradient(self.local, device)

    @staticmethod
    def _plan(sharding: str, case: Case, table: int) -> Any:
        """The placement of a table: spread evenly, on one host."""
        makers: dict[str, Callable[[], Any]] = {
            "table_wise": lambda: plans.table_wise(rank=table % case.ranks),
            "column_wise": lambda: plans.column_wise(ranks=list(range(case.ranks))),
            "row_wise": plans.row_wise,
            "table_row_wise": lambda: plans.table_row_wise(host_index=0),
            "grid_shard": lambda: plans.grid_shard(host_indexes=[0]),
            "data_parallel": plans.data_parallel,
        }
        if sharding not in makers:
            raise ValueError(f"unknown sharding {sharding!r}: expected one of {', '.join(makers)}")
        return makers[sharding]()

    def prepare(self, indices: Tensor) -> Tensor:
        """This rank's bags of each table of a global index set ``[tables * batch * pooling]``."""
        share = indices.view(self.local.tables, self.local.ranks, -1)[:, self.rank]
        return share.reshape(-1).to(self.device)

    def forward(self, inputs: Tensor) -> Tensor:
        """Ids to the tables' ranks, lookup, sums back: ``[batch / ranks, tables * width]``."""
        batch = KeyedJaggedTensor(keys=self.keys, values=inputs, lengths=self.lengths)
        return side_by_side(self.module(batch), self.local)

    def train(self, inputs: Tensor) -> None:
        """Forward, gradients to the tables' ranks, update there."""
        torch.autograd.backward(self.forward(inputs), self.gradient)
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()


def on_ranks(function: Callable[..., object], ranks: int, device: torch.device, *args: object) -> Generator[None]:
    """Run ``function(device, *args)`` in ``ranks`` new processes that form a process group.

    Yields:
        Several times a second while they run, and once after their end; closed earlier, it ends them.

    Raises:
        ValueError: Fewer GPUs than ranks.
        ProcessRaisedException: A rank failed; carries its traceback.
    """
    if device.type == "cuda" and torch.cuda.device_count() < ranks:
        raise ValueError(f"{ranks} ranks need {ranks} GPUs, this machine has {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as folder:
        processes = start_processes(
            _rank,
            args=(function, ranks, device.type, f"file://{folder}/rendezvous", args),
            nprocs=ranks,
            join=False,
            start_method="forkserver",
        )
        try:
            while not processes.join(timeout=POLL_SECONDS):
                yield
            yield
        finally:
            for process in processes.processes:
                process.terminate()
                process.join()


def quiet() -> None:
    """Silence what TorchRec and PyTorch say about TorchRec's own calls; nothing here can act on it."""
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("torchrec", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _rank(
    rank: int, function: Callable[..., object], ranks: int, kind: str, rendezvous: str, args: tuple[object, ...]
) -> None:
    quiet()
    # TorchRec reads the shape of the host from the environment, as torchrun would set it.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks))
    device = torch.device("cuda", rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=rendezvous,
        rank=rank,
        world_size=ranks,
        timeout=TIMEOUT,
        device_id=device if kind == "cuda" else None,
    )
    try:
        dist.barrier()  # a rank that fails at once would break the connections that others are still making
        function(device, *args)
    finally:
        dist.destroy_process_group()


def run(
    measurements: Sequence[Measurement], device: torch.device, seconds: float, samples: int
) -> Generator[tuple[Measurement, Timing | str]]:
    """Measure sharded kernels, all of the same number of ranks, in one set of processes.

    Yields:
        As soon as it is there, for each measurement its timing (of the slowest rank in each sample), or the error that
        stopped it.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "timings.jsonl"
        out.touch()
        count = 0
        ranks = measurements[0].case.ranks
        with closing(on_ranks(_measure_all, ranks, device, list(measurements), seconds, samples, out)) as turns:
            for _ in turns:
                lines = out.read_text().split("\n")[:-1]  # what follows the last newline is still being written
                for measurement, line in zip(measurements[count : len(lines)], lines[count:], strict=True):
                    result = json.loads(line)
                    yield measurement, result if isinstance(result, str) else Timing(**result)
                count = len(lines)


def _measure_all(
    device: torch.device, measurements: list[Measurement], seconds: float, samples: int, out: Path
) -> None:
    def slowest(value: float) -> float:
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.item()

    for measurement in measurements:
        torch.set_num_threads(measurement.case.threads)
        result: dict[str, object] | str
        try:
            kernel = ShardedKernel(measurement.kernel.removeprefix("sharded:"), measurement.case, device)
        except (RuntimeError, NotImplementedError, ValueError):
            result = traceback.format_exc(limit=-1)
        else:
            sets = [kernel.prepare(indices) for indices in index_sets(measurement.case, machine.cache_bytes(device))]
            result = asdict(_time(kernel, measurement, sets, device, seconds, samples, slowest))
            del kernel
        if dist.get_rank() == 0:
            with out.open("a") as lines:
                lines.write(json.dumps(result) + "\n")


def _time(
    kernel: ShardedKernel,
    measurement: Measurement,
    sets: list[Tensor],
    device: torch.device,
    seconds: float,
    samples: int,
    agree: Callable[[float], float],
) -> Timing:
    call = kernel.train if measurement.mode == TRAIN else kernel.forward
    return measure(lambda turn: call(sets[turn % len(sets)]), device, seconds, samples, agree)
