"""The loop alone, over a model of one weight: where it stops, saves, and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtmh.distributed.ranks import join_ranks
from mtmh.training.checkpoint import Checkpoints, RunRecord
from mtmh.training.loop import PlainPipeline, Trainer, Validation
from mtmh.training.progress import LossNames, RunSize, TrainingLog

NUM_STEPS = 12


def run(
    root: Path,
    num_steps: int = NUM_STEPS,
    validation: Callable[[Tensor], Validation] | None = None,
    every: int = 5,
    seconds: float = 0.0,
) -> tuple[Path | None, Tensor]:
    """Trains one weight by SGD; every batch is the number of its step, and a step takes a second of the clock."""
    finished: list[int] = []
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def begin_step(step: int) -> None:
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        finished.append(step)

    def task(batch: Tensor) -> tuple[Tensor, Tensor]:
        loss = ((weight - batch) ** 2 + torch.rand(2)).mean()
        return loss, loss.detach().reshape(1, 1)

    def trained() -> dict[str, Tensor]:
        return {"model.weight": weight.data}

    with join_ranks("cpu") as ranks:
        checkpoints = Checkpoints(root, RunRecord({"seed": 1}, {"seed": 1}, {}), ranks, keep=100)
        found = checkpoints.find(resume=True)
        step = checkpoints.restore(found, trained()) if found else 0
        names, size = LossNames(("square",), ("weight",), ((1.0,),)), RunSize(num_steps, 6, 2)
        trainer = Trainer(
            pipeline=PlainPipeline(task, optimizer, ranks.device),
            begin_step=begin_step,
            trained=trained,
            checkpoints=checkpoints,
            log=TrainingLog(root, size, names, lambda _: [], ranks, log_every=4, start_step=step),
            ranks=ranks,
            checkpoint_every=every,
            checkpoint_seconds=seconds,
            clock=lambda: float(len(finished)),
            validation=validation(weight) if validation else None,
        )
        batches: Iterator[Tensor] = (torch.full((2,), float(number)) for number in range(step, NUM_STEPS))
        return trainer.run(batches, step, num_steps), weight.data.clone()


def saved(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.glob("step-*"))


def test_it_saves_at_every_interval_and_at_the_end(tmp_path: Path) -> None:
    last, _ = run(tmp_path)
    assert saved(tmp_path) == [5, 10, 12]
    assert last == tmp_path / "step-00000012"
    assert run(tmp_path)[0] is None, "no step is left"


def test_with_a_least_time_it_saves_at_the_first_interval_after_it_and_at_the_end(tmp_path: Path) -> None:
    torch.manual_seed(3)
    weight = run(tmp_path / "timed", every=2, seconds=5.0, num_steps=11)[1]
    assert saved(tmp_path / "timed") == [6, 11]
    torch.manual_seed(3)
    assert torch.equal(run(tmp_path / "plain", every=2, num_steps=11)[1], weight)


def test_a_run_in_pieces_computes_what_one_in_one_piece_does(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = run(tmp_path / "whole")[1]
    torch.manual_seed(3)
    run(tmp_path / "pieces", 7)
    assert torch.equal(run(tmp_path / "pieces")[1], whole)


@pytest.mark.parametrize("every", [2, 3, 5])
def test_validation_looks_at_its_interval_and_changes_nothing_but_the_end(tmp_path: Path, every: int) -> None:
    seen: list[tuple[int, Tensor]] = []

    def until(last: int) -> Callable[[Tensor], Validation]:
        def look(weight: Tensor) -> Validation:
            def should_stop(step: int) -> bool:
                seen.append((step, weight.detach().clone()))
                return step >= last

            return Validation(every, should_stop)

        return look

    expected = run(tmp_path / "without")[1]
    assert torch.equal(run(tmp_path / "with", validation=until(NUM_STEPS + 1))[1], expected)
    assert [step for step, _ in seen] == list(range(every, NUM_STEPS + 1, every))
    assert saved(tmp_path / "with") == [5, 10, 12]

    assert run(tmp_path / "stopped", validation=until(6))[0] is not None
    stop = -(-6 // every) * every
    assert saved(tmp_path / "stopped") == [step for step in (5, 10) if step < stop] + [stop]
    assert torch.equal(run(tmp_path / "stopped", stop)[1], dict(seen)[stop])
