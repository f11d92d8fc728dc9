"""The log of a run: a progress bar or log lines, TensorBoard, and one JSON line a window of steps."""

from __future__ import annotations

import json
import logging
import math
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.profiler import record_function

from mtmh.config import HeadConfig
from mtmh.data.batch import ItemBatch
from mtmh.data.dataset import Dataset
from mtmh.distributed.ranks import Ranks

STEP_METRICS = "metrics.jsonl"
NAMED_ITEMS = 8  # of a batch, in an error message

Batch = TypeVar("Batch")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Holds back what TorchRec and torch.fx report about their own workings, and deprecations in TorchRec's calls."""
    loggers = [logging.getLogger(name) for name in ("torchrec", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in (
                ".*broadcast_buffers.*",
                ".*deprecating ShardedTensor.*",
                ".*torch.distributed.* is deprecated.*",
            ):
                warnings.filterwarnings("ignore", message=text, category=FutureWarning)
            # Of a gradient with a single row, whose strides mean nothing.
            warnings.filterwarnings("ignore", message="Grad strides do not match", category=UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class NonFiniteLossError(RuntimeError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class LossNames:
    """Names of the losses of a step, a matrix.

    Attributes:
        kinds: of its rows.
        names: of its columns: heads, tasks.
        weights: [kinds][names], with which a column's ``total`` adds up its kinds.
        noun: for a column: head, task.
    """

    kinds: tuple[str, ...]
    names: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    noun: str = "head"

    @classmethod
    def of_heads(cls, heads: Sequence[HeadConfig]) -> Self:
        """Losses of the heads of a model."""
        kinds = ("engagement", "relevance", "semantic")
        weights = tuple(tuple(getattr(head, f"{kind}_weight") for head in heads) for kind in kinds)
        return cls(kinds, tuple(head.name for head in heads), weights)

    def tree(self, losses: list[list[float]]) -> dict[str, dict[str, float]]:
        """Column name -> ``total`` and each kind."""
        return {
            name: {
                "total": sum(row[place] * weights[place] for row, weights in zip(losses, self.weights, strict=True)),
                **{kind: row[place] for kind, row in zip(self.kinds, losses, strict=True)},
            }
            for place, name in enumerate(self.names)
        }


@dataclass(frozen=True)
class RunSize:
    """Length of a run.

    Attributes:
        num_steps: of the whole run.
        steps_per_epoch: of one pass over the data.
        batch_size: pairs or examples of a global step.
        at_most: the run may end before, when it has got no better for long.
    """

    num_steps: int
    steps_per_epoch: int
    batch_size: int
    at_most: bool = False


class TrainingLog:
    """Collects losses on the device and reads them once a window of steps, over all ranks.

    Args:
        folder: of `STEP_METRICS` and TensorBoard's files.
        size: of the run.
        names: of the losses.
        first_items: names the first items of this rank's batch of a step, given the steps before it; for the message
            when a loss is no number.
        ranks: only rank 0 prints and writes.
        log_every: steps of a window.
        start_step: finished steps; lines of later ones, of a run that was killed, are dropped.
    """

    def __init__(
        self,
        folder: Path,
        size: RunSize,
        names: LossNames,
        first_items: Callable[[int], list[str]],
        ranks: Ranks,
        *,
        log_every: int,
        start_step: int,
    ) -> None:
        self._size = size
        self._names = names
        self._first_items = first_items
        self._ranks = ranks
        self._log_every = log_every
        self._window: list[Tensor] = []
        self._waited = 0.0
        self._step = start_step
        self._gauges: dict[str, Callable[[], Mapping[str, float]]] = {}
        self._view = _View(folder, size, start_step) if ranks.is_first else None
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is not None:
            self._view.close()

    def add(self, name: str, gauge: Callable[[], Mapping[str, float]]) -> None:
        """Shows more numbers with every window, under ``name`` in the JSON line and ``name/KEY`` in TensorBoard.

        Args:
            name: not one of the line's own keys.
            gauge: called at the end of a window on all ranks together, so it may communicate; rank 0's result is shown.
        """
        assert name not in self._gauges, name
        self._gauges[name] = gauge

    def show(self, message: RenderableType) -> None:
        """Prints on rank 0."""
        if self._view is not None:
            self._view.console.print(message, soft_wrap=isinstance(message, str))

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; measures how long the step waits for them."""
        while True:
            began = time.perf_counter()
            with record_function("data wait"):
                batch = next(batches, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def record(self, step: int, losses: Tensor, *, report: bool) -> None:
        """Takes in a finished step; at the end of a window, or if ``report``, checks and writes. All ranks call it.

        Args:
            step: finished steps.
            losses: [kinds, names] this rank's part of the losses.
            report: end the window here.

        Raises:
            NonFiniteLossError: a loss of the window is infinite or not a number.
        """
        self._window.append(losses)
        if not report and step % self._log_every:
            return
        first_step = self._step + 1
        own = torch.stack(self._window)  # [steps, kinds, names]
        total = own.clone()
        dist.all_reduce(total)
        if not bool(total.isfinite().all()):
            raise NonFiniteLossError(self._describe(own.cpu(), total.cpu(), first_step))
        line = self._line(step, total)
        if self._view is not None:
            self._view.write(line)
        self._window.clear()
        self._waited = 0.0
        self._step = step
        self._began = time.perf_counter()

    def _line(self, step: int, total: Tensor) -> dict[str, Any]:
        seconds = time.perf_counter() - self._began
        peak = 0 if self._ranks.device.type == "cpu" else torch.cuda.max_memory_allocated(self._ranks.device)
        own = (self._waited, _resident_bytes(), _peak_bytes(), peak)
        worst = torch.tensor(own, device=self._ranks.device, dtype=torch.float64)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        waited, resident, peak_resident, peak_gpu = worst.tolist()
        return {
            "step": step,
            "epoch": (step - 1) // self._size.steps_per_epoch,
            "loss": self._names.tree(total.mean(dim=0).tolist()),
            "pairs_per_s": len(self._window) * self._size.batch_size / seconds,
            "data_wait_share": min(1.0, waited / seconds),
            "rss_gb": resident / 1e9,
            "peak_rss_gb": peak_resident / 1e9,
            "peak_gpu_gb": peak_gpu / 1e9,
        } | {name: dict(gauge()) for name, gauge in self._gauges.items()}

    def _describe(self, own: Tensor, total: Tensor, first_step: int) -> str:
        """Names step, head and items; every rank gets to the same message, so that all stop."""
        offset, kind, name = (~total.isfinite()).nonzero()[0].tolist()
        step = first_step + offset
        items: list[list[str]] = [[] for _ in range(self._ranks.world_size)]
        here = [] if math.isfinite(own[offset, kind, name]) else self._first_items(step - 1)[:NAMED_ITEMS]
        dist.all_gather_object(items, here)
        named = ", ".join(item for part in items for item in part)
        return (
            f"step {step}: the {self._names.kinds[kind]} loss of {self._names.noun} {self._names.names[name]!r} is "
            f"{total[offset, kind, name].item()}. First triggers of the batch: {named}. "
            f"Stopped before it could reach a checkpoint; a lower learning rate or a higher temperature may help"
        )


def first_triggers(dataset: Dataset, batch: ItemBatch) -> list[str]:
    """Ids of the first triggers of a batch, for `TrainingLog`."""
    return [str(dataset.item_ids[item]) for item in batch.item_index[batch.trigger[:NAMED_ITEMS]].tolist()]


class _View:
    """Rank 0's outlets: console, metrics.jsonl, TensorBoard."""

    def __init__(self, folder: Path, size: RunSize, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second, which the other ranks need not wait

        folder.mkdir(parents=True, exist_ok=True)
        self.console = Console()
        self._size = size
        self._last = (start_step, time.perf_counter())
        _drop_lines_after(folder / STEP_METRICS, start_step)
        self._file = (folder / STEP_METRICS).open("a")
        self._board = SummaryWriter(folder / "tensorboard", purge_step=start_step + 1)
        self._progress: Progress | None = None
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                # Of a run that ends by itself, nobody knows how long it takes.
                *([] if size.at_most else [TimeRemainingColumn()]),
                TextColumn("{task.fields[text]}"),
                console=self.console,
            )
            self._task = self._progress.add_task(
                "", total=None if size.at_most else size.num_steps, completed=start_step, text=""
            )
            self._progress.start()

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        scalars = {f"loss/{head}/{kind}": value for head, loss in line["loss"].items() for kind, value in loss.items()}
        for key, value in line.items():
            if key not in ("step", "loss"):
                scalars |= {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        for key, value in scalars.items():
            self._board.add_scalar(key, value, line["step"])
        losses = "  ".join(
            f"{name} " + "/".join(f"{value:.3f}" for kind, value in loss.items() if kind != "total" and value)
            for name, loss in line["loss"].items()
        )
        text = f"{losses}  {line['pairs_per_s']:,.0f} pairs/s  data wait {line['data_wait_share']:.0%}"
        if self._progress is not None:
            self._progress.update(self._task, completed=line["step"], text=text)
            return
        self.console.print(
            f"{self._place(line['step'])}  epoch {line['epoch']}  {text}", highlight=False, soft_wrap=True
        )

    def _place(self, step: int) -> str:
        """How far the run is, and the time that it still takes where that is known."""
        if self._size.at_most:
            return f"step {step}"
        now = time.perf_counter()
        seconds = (now - self._last[1]) / (step - self._last[0]) * (self._size.num_steps - step)
        self._last = (step, now)
        return f"step {step}/{self._size.num_steps}  eta {timedelta(seconds=round(seconds))}"

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._file.close()
        self._board.close()


def _drop_lines_after(path: Path, step: int) -> None:
    """Keeps whole lines of steps up to ``step``; a killed run may leave later ones and half a line."""
    if not path.is_file():
        return
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["step"] <= step:
            kept.append(text + "\n")
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text("".join(kept))
    aside.replace(path)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
