"""Seconds of a request, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Seconds spent in each stage; for one request, not for several threads.

    Retrieval has the stages ``embed`` (vectors of the triggers, filters), ``search``, ``prerank``, ``merge`` and
    ``describe`` (ids and columns of the answers); callers may add their own.

    Attributes:
        seconds: by stage, in the order in which they began.

    Example:
        >>> timings = Timings()
        >>> with timings.stage("search"):
        ...     pass
        >>> list(timings.seconds)
        ['search']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
