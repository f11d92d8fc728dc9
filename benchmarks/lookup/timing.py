"""Repeated timing of a step: warm-up, samples of several calls, median and spread; CPU clock or CUDA events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

WARM_UP_CALLS = 3
PATIENCE = 10.0  # a figure may take so many times the seconds asked for; slow calls then make do with three samples
SAMPLE_SECONDS = 0.005  # a sample repeats short calls until the clock's and the events' resolution stop to matter
MAX_SAMPLES = 200


@dataclass(frozen=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median: Median over the samples.
        q1: First quartile.
        q3: Third quartile.
        fastest: Fastest sample.
        slowest: Slowest sample.
        samples: Number of samples.
        calls: Calls in a sample.
        cores_busy: CPU seconds of this process per second of wall clock; how many cores the kernel really uses.
    """

    median: float
    q1: float
    q3: float
    fastest: float
    slowest: float
    samples: int
    calls: int
    cores_busy: float


def measure(
    step: Callable[[int], object],
    device: torch.device,
    seconds: float,
    samples: int,
    agree: Callable[[float], float] = float,
) -> Timing:
    """Time ``step``.

    Args:
        step: Called with 0, 1, 2, ...: it takes another index set at each call.
        device: Where the work runs. CUDA work is timed with events between two synchronisations.
        seconds: Time to spend on samples.
        samples: Least number of samples; three where ``samples`` of them would take too long.
        agree: Turns a rank's own seconds into those of the slowest rank, so that all ranks make equally many calls.
    """
    count = 0

    def sample(calls: int) -> tuple[float, float, float]:
        """Seconds of a call; CPU and wall seconds of the sample."""
        nonlocal count
        cpu, begin = time.process_time(), time.perf_counter()
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
        for _ in range(calls):
            step(count)
            count += 1
        if device.type == "cuda":
            end.record()
            torch.cuda.synchronize(device)
            wall = start.elapsed_time(end) / 1000
        else:
            wall = time.perf_counter() - begin
        used, passed = time.process_time() - cpu, time.perf_counter() - begin
        return agree(wall) / calls, used, passed

    once = min(sample(1)[0] for _ in range(WARM_UP_CALLS))
    calls = max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-9)))
    affordable = math.ceil(PATIENCE * seconds / (once * calls))
    wanted = min(max(math.ceil(seconds / (once * calls)), min(samples, affordable), 3), MAX_SAMPLES)
    results = [sample(calls) for _ in range(wanted)]
    times = np.array([result[0] for result in results])
    fastest, q1, median, q3, slowest = (float(value) for value in np.quantile(times, [0, 0.25, 0.5, 0.75, 1]))
    # Over all samples: the CPU clock of threads that are still running moves in steps of the scheduler's tick.
    cores_busy = sum(result[1] for result in results) / sum(result[2] for result in results)
    return Timing(median, q1, q3, fastest, slowest, wanted, calls, cores_busy)
