"""The outermost layer of the service: limits of the body before anything parses it, headers, faults, access log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtmh.serving.http_errors import problem
from mtmh.serving.prometheus import ServiceMetrics

log = logging.getLogger("mtmh.serve")
access_log = logging.getLogger("mtmh.access")

REQUEST_ID = "X-Request-ID"
_STATE = "request_id"  # where routes find the id of their request
QUESTIONS = "/v1/retrieve"
OVERLOADED = "the service is overloaded"

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")  # of a proxy or a client; anything else would let it write lines of the log
_OPERATING = frozenset({"/healthz", "/readyz", "/metrics"})

# The page needs its own script and style, pictures of items and nothing else; the API needs nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'{images}; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def security_headers(image_origin: str = "") -> dict[str, str]:
    """Headers of every answer; ``image_origin`` as of `Guard`."""
    images = f" {image_origin}" if image_origin else ""
    return {**_HEADERS, "Content-Security-Policy": _POLICY.format(images=images)}


def id_of(request: Request) -> str:
    """The id that the answer to a request will have in ``X-Request-ID``."""
    found: str = getattr(request.state, _STATE)
    return found


class Guard:
    """ASGI middleware around the whole application.

    Every answer has an id in ``X-Request-ID``: that of the request, or a new one. What fails inside is answered with
    500 and nothing but that id; the log has it beside the traceback.

    Args:
        app: what it guards.
        metrics: to count in.
        max_body_bytes: a larger body is answered 413, before it is read to its end.
        max_requests: that are under way; one more is answered 429, unless it asks how the service is.
        body_seconds: a body that takes longer to arrive is answered 408.
        draining: whether the service is about to end; then clients are asked to close their connections.
        overloaded: whether questions are to be refused.
        image_origin: scheme and host from which the page may show pictures; empty: its own alone.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: ServiceMetrics,
        max_body_bytes: int,
        max_requests: int,
        body_seconds: float,
        draining: Callable[[], bool],
        overloaded: Callable[[], bool],
        image_origin: str = "",
    ) -> None:
        self._headers = security_headers(image_origin)
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._max_requests = max_requests
        self._under_way = 0
        self._body_seconds = body_seconds
        self._draining = draining
        self._overloaded = overloaded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; the server keeps the body back, by its own scope
            scope = {**scope, "method": "GET"}
        start = time.perf_counter()
        status = 0  # of the answer, once it has begun
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})[_STATE] = request_id

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                headers[REQUEST_ID] = request_id
                headers.setdefault("Cache-Control", "no-store")
                if self._draining():
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._counted(scope, receive, send_with_headers)
        except Exception:
            log.exception("request %s failed: %s %s", request_id, scope["method"], ascii(scope["path"]))
            if status:  # too late for another answer: the server cuts this one off
                raise
            await problem(500, f"a fault of the service, logged as request {request_id}")(
                scope, receive, send_with_headers
            )
        finally:
            self._record(scope, request_id, status or 500, time.perf_counter() - start)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _OPERATING:
            if scope["method"] == "OPTIONS":
                await Response(status_code=204, headers={"Allow": "GET, HEAD, OPTIONS"})(scope, receive, send)
            else:
                await self._limited(scope, receive, send)
            return
        if self._under_way >= self._max_requests:
            self._metrics.rejected.labels("too_many_requests").inc()
            headers = {"Retry-After": "1", "Connection": "close"}
            await problem(429, "too many requests are under way", headers=headers)(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._limited(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await self._app(scope, receive, send)
            return
        if scope["path"] == QUESTIONS and self._overloaded():
            self._metrics.rejected.labels("overloaded").inc()
            await problem(429, OVERLOADED, headers={"Retry-After": "1"})(scope, receive, send)
            return
        encoding = Headers(scope=scope).get("content-encoding", "identity")
        if encoding.lower() != "identity":
            text = "expected a body without Content-Encoding: the service unpacks nothing"
            await problem(415, text, headers={"Connection": "close"})(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._body_seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            self._metrics.rejected.labels("slow_body").inc()
            answer = problem(
                408, f"the body took longer than {self._body_seconds:g} s", headers={"Connection": "close"}
            )
            await answer(scope, receive, send)
            return
        if body is None:
            self._metrics.rejected.labels("body_too_large").inc()
            text = f"the body is larger than {self._max_body_bytes} bytes"
            await problem(413, text, headers={"Connection": "close"})(scope, receive, send)
            return
        read = False

        async def replay() -> Message:
            nonlocal read
            if not read:
                read = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, or None as soon as it is known to be too large."""
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._max_body_bytes:
            return None
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        # Paths as declared, not as sent: a client must not be able to make new labels.
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if access_log.isEnabledFor(logging.INFO):
            client = scope.get("client") or ("", 0)
            line = {
                "time": round(time.time(), 3),
                "id": request_id,
                "client": client[0],
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round(1000 * seconds, 3),
            }
            access_log.info(json.dumps(line))
