"""A trace of some steps, for https://ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from mtmh.distributed.ranks import Ranks

SKIPPED = 2  # first steps, in which buffers are made
WARM_UP = 1  # the profiler's own


@contextmanager
def tracing(num_steps: int, folder: Path, ranks: Ranks) -> Iterator[Callable[[], None]]:
    """Traces ``num_steps`` steps of each rank into ``folder/rank-0.json.gz`` and so on.

    Among the ranges are TorchRec's ``## forward 3 ##``, ``## backward 3 ##``, ``## optimizer 3 ##``, those of its
    all-to-alls, and ``data wait``. A step is traced after three others.

    Args:
        num_steps: 0 for no trace.
        folder: made if need be; an earlier trace is replaced.
        ranks: this process among the others.

    Returns:
        What to call after each step.
    """
    if not num_steps:
        yield lambda: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"rank-{ranks.rank}.json.gz"
    aside = folder / f".{final.name.removesuffix('.json.gz')}.partial.json.gz"

    def write(profiler: profile) -> None:
        profiler.export_chrome_trace(str(aside))
        aside.replace(final)

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if ranks.device.type == "cuda" else [])
    plan = schedule(wait=SKIPPED, warmup=WARM_UP, active=num_steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        yield profiler.step
