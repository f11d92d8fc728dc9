"""Refusal of questions before anything parses them: under overload that leaves the core to the answers."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable

from mtmh.serving.guard import OVERLOADED, QUESTIONS, REQUEST_ID, security_headers
from mtmh.serving.http_errors import problem
from mtmh.serving.prometheus import ServiceMetrics

_BEGINNING = f"POST {QUESTIONS} HTTP/1.1\r\n".encode()
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*(?=\r\n)", re.IGNORECASE)
# A header with one of these asks for more than a canned answer.
_SPECIAL = re.compile(rb"\r\n(?:transfer-encoding|expect|connection|upgrade|x-request-id)[ \t]*:", re.IGNORECASE)

Headers = Iterable[tuple[bytes, bytes]]


class EarlyRefusal:
    """The 429 of `Guard` as bytes, for a question that came in one piece while the service is overloaded.

    Args:
        metrics: to count in.
        overloaded: whether questions are to be refused.
        draining: whether the service is about to end; then answers have more to say.
    """

    def __init__(
        self, metrics: ServiceMetrics, *, overloaded: Callable[[], bool], draining: Callable[[], bool]
    ) -> None:
        self._overloaded = overloaded
        self._draining = draining
        self._rejected = metrics.rejected.labels("overloaded")
        self._requests = metrics.requests.labels(QUESTIONS, "429")
        self._access_log = logging.getLogger("mtmh.access")
        fixed = {"Retry-After": "1", "Cache-Control": "no-store", **security_headers()}
        answer = problem(429, OVERLOADED, headers=fixed)
        self._start = b"HTTP/1.1 429 Too Many Requests\r\n" + _lines(answer.raw_headers)
        self._body = bytes(answer.body)

    def __call__(self, data: bytes, headers: Headers) -> bytes | None:
        """The answer to a whole request; None: let it be parsed.

        Args:
            data: what came first on a connection, or after the answer before.
            headers: of every answer.
        """
        if not data.startswith(_BEGINNING) or not self._overloaded() or self._draining():
            return None
        end = data.find(b"\r\n\r\n") + 2
        lengths = _LENGTH.findall(data, 0, end)
        if end < 2 or len(lengths) != 1 or len(data) != end + 2 + int(lengths[0]) or _SPECIAL.search(data, 0, end):
            return None
        if self._access_log.isEnabledFor(logging.INFO):  # has a line of every request
            return None
        self._rejected.inc()
        self._requests.inc()
        request_id = f"{REQUEST_ID}: {os.urandom(16).hex()}\r\n\r\n".encode()
        return b"".join((self._start, _lines(headers), request_id, self._body))


def _lines(headers: Headers) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)
