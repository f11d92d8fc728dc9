"""Lateness of the event loop: requests that it has not come to yet wait in no queue that could be bounded."""

from __future__ import annotations

import asyncio
import time

_PERIOD = 0.02


class LoopLag:
    """Measures the lag of the running event loop, by a timer that should go off fifty times a second."""

    def __init__(self) -> None:
        self._last = 0.0
        self._due = float("inf")

    @property
    def seconds(self) -> float:
        """By how much the timer was late the last time, or is by now; without load some microseconds."""
        return max(self._last, time.monotonic() - self._due)

    async def watch(self) -> None:
        """Measures until cancelled."""
        while True:
            self._due = time.monotonic() + _PERIOD
            await asyncio.sleep(_PERIOD)
            self._last = max(0.0, time.monotonic() - self._due)
