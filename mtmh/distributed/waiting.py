"""Measures how long the training thread waits for other ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


class CollectiveClock:
    """Seconds in which the thread that made this object waited for collectives.

    On the CPU a collective takes its time in ``Work.wait``: the transfer, and before it the wait for the slowest rank.
    Every collective that Python starts ends there: ids and embeddings of the tables on their way to and from their
    owners (all-to-all, reduce-scatter), the exchange of negatives, and counters. DDP's averaging of the towers'
    gradients waits in C++ and is not seen. On CUDA ``wait`` only orders streams, so there is nothing to measure: see
    the trace of ``mtmh train --profile`` there.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._thread = threading.get_ident()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measures inside the block; PyTorch offers no hook for it, so the method is replaced meanwhile."""
        wait = dist.Work.wait

        def timed(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:  # a checkpoint that is written in the background
                return wait(work, *args, **kwargs)
            began = time.perf_counter()
            try:
                return wait(work, *args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        dist.Work.wait = timed  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            dist.Work.wait = wait  # type: ignore[method-assign]
