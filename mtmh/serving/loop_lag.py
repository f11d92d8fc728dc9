"""Lateness of the event loop: requests that it has not come to yet wait in no queue that could be bounded."""

from __future__ import annotations

import asyncio

_PERIOD = 0.02


class LoopLag:
    """Measures the lag of the running event loop.

    Attributes:
        seconds: by how much a timer was late the last time; without load some microseconds.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    async def watch(self) -> None:
        """Measures until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD
            await asyncio.sleep(_PERIOD)
            self.seconds = max(0.0, loop.time() - due)
