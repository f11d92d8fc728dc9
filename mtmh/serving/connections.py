"""Limits of connections: how many may be open, and how long one may take until it has sent a request's header."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

log = logging.getLogger("mtmh.serve")

_OTHER_FILES = 256  # of the process: index files, logs, the event loop
_QUIET_SECONDS = 60.0  # between two lines of the log
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


def most_connections(wanted: int) -> int:
    """As many connections as wanted, or as the process may have files for; its limit is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted + _OTHER_FILES:
        soft = wanted + _OTHER_FILES if hard == resource.RLIM_INFINITY else min(hard, wanted + _OTHER_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - _OTHER_FILES))


def arrival(scope: Mapping[str, Any]) -> float:
    """When a request came, of ``time.monotonic()``: its wait for the event loop counts."""
    arrived: float = scope.get("state", {}).get("arrived", time.monotonic())
    return arrived


def limited_protocol(
    *,
    max_connections: int,
    idle_seconds: float,
    header_seconds: float,
    lag: Callable[[], float],
    refuse: Callable[[bytes, Iterable[tuple[bytes, bytes]]], bytes | None],
) -> type[H11Protocol]:
    """The protocol of a uvicorn server that closes connections beyond a number, and those that send no whole header.

    Between two requests uvicorn's own ``timeout_keep_alive`` counts; a body has the time that `Guard` gives it.

    Args:
        lag: seconds by which the event loop is late.
        refuse: as `EarlyRefusal`.
        max_connections: one more is answered 503 and closed, with one line a minute in the log.
        idle_seconds: from the beginning of a connection to its first byte.
        header_seconds: from the first byte of a request to the end of its header.
    """
    said = -_QUIET_SECONDS

    class LimitedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _in_header = False
        _last_cycle: RequestResponseCycle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            nonlocal said
            super().connection_made(transport)
            if len(self.connections) <= max_connections:
                self._wait(idle_seconds)
                return
            if time.monotonic() - said >= _QUIET_SECONDS:
                said = time.monotonic()
                log.warning("%d connections are open (service.max_connections): more are closed", max_connections)
            transport.write(_FULL)
            transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait(None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            is_between = self.cycle is None or self.cycle.response_complete
            if is_between and not self._in_header:
                is_idle = self.conn.our_state is h11.IDLE and not self.conn.trailing_data[0]
                refusal = refuse(data, self.server_state.default_headers) if is_idle else None
                if refusal is not None:
                    self.transport.write(refusal)
                    self._unset_keepalive_if_required()
                    self._wait(idle_seconds)
                    return
                self._in_header = True
                self._wait(header_seconds)  # the first byte ends uvicorn's own wait
            arrived = time.monotonic() - lag()
            super().data_received(data)
            if self.cycle is not self._last_cycle:  # a header was whole, and its request has begun
                self.cycle.scope["state"]["arrived"] = arrived
                self._last_cycle = self.cycle
                self._in_header = False
                self._wait(None)

        def _wait(self, seconds: float | None) -> None:
            """Closes the connection after some seconds; None: not any more."""
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None
            if seconds is not None and not self.transport.is_closing():
                self._timer = asyncio.get_running_loop().call_later(seconds, self.transport.close)

    return LimitedProtocol
