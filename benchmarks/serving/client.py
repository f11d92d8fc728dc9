"""A small HTTP/1.1 client for load: one kept connection, no more of the protocol than the service speaks."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Reply:
    """An answer: status, body and the headers in lower case."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


class Connection:
    """One connection; a broken one is opened anew by the next call.

    Args:
        port: of the service on this machine.
        key: sent with every request, if given.
    """

    def __init__(self, port: int, key: str | None = None) -> None:
        self._port = port
        self._fixed = "Host: localhost\r\nContent-Type: application/json\r\n" + (f"X-API-Key: {key}\r\n" if key else "")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def call(self, method: str, path: str, content: Any = None) -> Reply:
        """Sends one request and reads its answer.

        Raises:
            OSError: the connection failed.
            asyncio.IncompleteReadError: it ended before the answer.
        """
        body = b"" if content is None else json.dumps(content).encode()
        head = f"{method} {path} HTTP/1.1\r\n{self._fixed}Content-Length: {len(body)}\r\n\r\n"
        if self._streams is not None and self._streams[0].at_eof():  # closed by the service, because it was idle
            self.close()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(head.encode() + body)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            answer = await reader.readexactly(int(headers.get("content-length", 0)))
        except BaseException:
            self.close()
            raise
        if headers.get("connection") == "close":
            self.close()
        return Reply(int(first.split(" ", 2)[1]), answer, headers)
