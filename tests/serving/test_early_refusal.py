"""Refusal before a question is parsed: of whole questions alone, on connections that go on; and when a request came."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from mtmh.serving.connections import arrival, limited_protocol
from mtmh.serving.early_refusal import EarlyRefusal
from mtmh.serving.guard import security_headers
from mtmh.serving.prometheus import ServiceMetrics

IDLE_SECONDS = 1.0
LAG = 0.3


def question(
    path: str = "/v1/retrieve", *, method: str = "POST", body: bytes = b'{"triggers": [17]}', more: str = ""
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{more}"
    return head.encode() + b"content-LENGTH: %d\r\n\r\n" % len(body) + body


WHOLE = question()


class State:
    """Of a service that is overloaded or not."""

    def __init__(self) -> None:
        self.overloaded = True
        self.draining = False
        self.metrics = ServiceMetrics()
        self.refuse = EarlyRefusal(self.metrics, overloaded=lambda: self.overloaded, draining=lambda: self.draining)

    def rejected(self) -> float:
        return self.metrics.registry.get_sample_value("mtmh_rejected_total", {"reason": "overloaded"}) or 0.0


def test_a_whole_question_is_refused_as_the_guard_would() -> None:
    state = State()
    first, second = (state.refuse(WHOLE, [(b"date", b"today")]) for _ in range(2))
    assert first is not None
    head, _, body = first.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert status == "HTTP/1.1 429 Too Many Requests"
    assert json.loads(body)["status"] == 429
    assert headers.items() >= {(name.lower(), value) for name, value in security_headers().items()}
    expected = {"retry-after": "1", "cache-control": "no-store", "date": "today", "content-length": str(len(body))}
    assert headers.items() >= expected.items()
    assert headers["content-type"] == "application/problem+json"
    assert len(headers["x-request-id"]) == 32
    assert second != first, "each has an id of its own"
    assert state.rejected() == 2


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:-1],
        WHOLE + b"G",
        WHOLE[: WHOLE.index(b"\r\n\r\n")],
        b"",
        question(method="GET"),
        question("/v1/items"),
        question("/v1/retrieve?x=1"),
        question("/healthz"),
        question(more="Transfer-Encoding: chunked\r\n"),
        question(more="Content-Length: 18\r\n"),
        question(more="Connection: close\r\n"),
        question(more="Expect: 100-continue\r\n"),
        question(more="X-Request-ID: edge-1\r\n"),
        question(body=b"x\r\nContent-Length: 5\r\n\r\n12345")[:-3],
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
    ],
)
def test_all_else_is_parsed(data: bytes) -> None:
    state = State()
    assert state.refuse(data, []) is None
    assert state.rejected() == 0


def test_nothing_is_refused_without_overload_at_the_end_or_beside_an_access_log() -> None:
    state = State()
    state.overloaded = False
    assert state.refuse(WHOLE, []) is None
    state.overloaded = state.draining = True
    assert state.refuse(WHOLE, []) is None
    state.draining = False
    log = logging.getLogger("mtmh.access")
    before = log.level
    log.setLevel(logging.INFO)
    try:
        assert state.refuse(WHOLE, []) is None
    finally:
        log.setLevel(before)
    assert state.refuse(WHOLE, []) is not None


async def says_its_wait(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the seconds since the request came."""
    if scope["type"] != "http":
        return
    body = f"{time.monotonic() - arrival(scope):.3f}".encode()
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def served() -> Iterator[tuple[State, int]]:
    state = State()
    protocol = limited_protocol(
        max_connections=10, idle_seconds=IDLE_SECONDS, header_seconds=5.0, lag=lambda: LAG, refuse=state.refuse
    )
    server = uvicorn.Server(
        uvicorn.Config(says_its_wait, http=protocol, lifespan="off", log_config=None, timeout_keep_alive=1)
    )
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        yield state, listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def answer(client: socket.socket, sent: bytes) -> tuple[int, Any]:
    client.sendall(sent)
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(65_536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += client.recv(65_536)
    return int(head.split()[1]), json.loads(body)


def test_a_connection_goes_on_after_a_refusal_and_is_closed_when_idle(served: tuple[State, int]) -> None:
    state, port = served
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for overloaded in (True, True, False, True, False, True):
            state.overloaded = overloaded
            assert answer(client, WHOLE)[0] == (429 if overloaded else 200)
            time.sleep(0.5 * IDLE_SECONDS)  # longer in all than one may say nothing
        client.sendall(WHOLE[:20])  # in two pieces: parsed, and here answered
        time.sleep(0.1)
        assert answer(client, WHOLE[20:])[0] == 200
        assert answer(client, WHOLE)[0] == 429
        start = time.monotonic()
        assert client.recv(10) == b""
        assert 0.5 * IDLE_SECONDS < time.monotonic() - start < 20


def test_a_request_came_before_the_loop_came_to_it(served: tuple[State, int]) -> None:
    state, port = served
    state.overloaded = False
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for _ in range(2):
            assert LAG <= answer(client, WHOLE)[1] < LAG + 5
    assert abs(time.monotonic() - arrival({"type": "http"})) < 5
