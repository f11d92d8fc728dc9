"""The loop that trains every model: steps, checkpoints between them, and validation that may end the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mtmh.distributed.ranks import Ranks, on_first
from mtmh.distributed.state_files import State
from mtmh.training.checkpoint import Checkpoints
from mtmh.training.profile import tracing
from mtmh.training.progress import Batch, TrainingLog

BatchIn = TypeVar("BatchIn", contravariant=True)


class TrainPipeline(Protocol[BatchIn]):
    """Takes one training step at a time; TorchRec's pipelines do, and `PlainPipeline`."""

    def progress(self, dataloader_iter: Iterator[BatchIn]) -> Tensor:
        """Trains on the next batch and returns this rank's part of its losses, [kinds, names]; may read ahead."""
        ...


class PlainPipeline:
    """Forward, backward and update, one after the other: for a model whose parameters are all replicated.

    Args:
        model: maps a batch to the loss to differentiate and the losses to report.
        optimizer: of its parameters.
        device: where the model takes batches, which have a method ``to``.
    """

    def __init__(
        self, model: Callable[[Any], tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._device = device

    def progress(self, dataloader_iter: Iterator[Any]) -> Tensor:
        """Trains on the next batch, see `TrainPipeline`."""
        batch = next(dataloader_iter).to(self._device)
        self._optimizer.zero_grad()
        loss, reported = self._model(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return reported


@dataclass(frozen=True)
class Validation:
    """A look at the model between two steps.

    Attributes:
        every: steps from one to the next, counted from the beginning of the run.
        should_stop: given the finished steps; all ranks call it together and get the same answer, True ends the run. It
            must leave torch's random state as it finds it. A memory of its own belongs into `Checkpoints.add`: it is
            called before the checkpoint of its step is written, and again if the run was killed in between.
    """

    every: int
    should_stop: Callable[[int], bool]


@dataclass(frozen=True)
class Trainer(Generic[Batch]):
    """Trains a model step by step; a run that is killed and resumed computes what one that was not computes.

    Attributes:
        pipeline: takes the steps.
        begin_step: called before each step with the number of finished ones; sets all that follows from this number
            alone: learning rates, clocks, seeds.
        trained: weights and optimizer state as they are now, for checkpoints.
        checkpoints: where they go.
        log: where losses go.
        ranks: this process among the others.
        checkpoint_every: steps from one checkpoint to the next; the last step has one too.
        checkpoint_seconds: at least from one checkpoint to the next, but for that of the last step; by the first rank's
            clock.
        clock: in seconds.
        save_behind: checkpoints but the last are written in the background.
        profile: so many steps are traced into the folder ``trace`` beside the checkpoints.
        validation: may end the run.
    """

    pipeline: TrainPipeline[Batch]
    begin_step: Callable[[int], None]
    trained: Callable[[], State]
    checkpoints: Checkpoints
    log: TrainingLog
    ranks: Ranks
    checkpoint_every: int
    checkpoint_seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    save_behind: bool = False
    profile: int = 0
    validation: Validation | None = None

    def run(self, batches: Iterator[Batch], step: int, num_steps: int) -> Path | None:
        """Trains from ``step`` finished steps to ``num_steps``, or until validation says that it is enough.

        Args:
            batches: of the steps that are left.
            step: finished steps.
            num_steps: of the whole run.

        Returns:
            The last checkpoint; None: no step was left.

        Raises:
            NonFiniteLossError: the loss is no longer a number; the last checkpoint is from before.
            NonFiniteStateError: weights or optimizer state are not; likewise.
        """
        trace = tracing(self.profile, self.checkpoints.root / "trace", self.ranks)
        checkpoint, is_over, last_save = None, step >= num_steps, self.clock()
        with self.log, self.checkpoints, trace as end_step:
            while not is_over:
                # The pipeline works ahead, but never past a stop: nothing of a later step is in the state.
                stop = self._next_stop(step, num_steps)
                leg = islice(batches, stop - step)
                while step < stop:
                    self.begin_step(step)
                    losses = self.pipeline.progress(leg)
                    step += 1
                    end_step()
                    self.log.record(step, losses, report=step == stop)  # raises if the loss is no number
                is_over = self._should_stop(step) or step == num_steps
                if is_over or (step % self.checkpoint_every == 0 and self._is_time(last_save)):
                    last_save = self.clock()
                    checkpoint = self.checkpoints.save(step, self.trained(), behind=self.save_behind and not is_over)
            if checkpoint is not None:
                self.log.show(f"Trained {step} steps; checkpoint {checkpoint}")
            elif step > num_steps:
                self.log.show(f"Already trained {step:,} steps, the recipe asks for {num_steps:,}; nothing was done")
            else:
                self.log.show(f"Already trained {step:,} steps; nothing is left to do")
        return checkpoint

    def _next_stop(self, step: int, num_steps: int) -> int:
        """The step after which the state is written or looked at next."""
        intervals = [self.checkpoint_every] + ([self.validation.every] if self.validation else [])
        return min(num_steps, *(step + every - step % every for every in intervals))

    def _is_time(self, last_save: float) -> bool:
        if not self.checkpoint_seconds:
            return True
        return on_first(self.ranks, lambda: self.clock() - last_save >= self.checkpoint_seconds)

    def _should_stop(self, step: int) -> bool:
        validation = self.validation
        return validation is not None and step % validation.every == 0 and validation.should_stop(step)
