"""Connections that say nothing, too little or are too many; and requests at the edges of HTTP."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from service_process import ServiceProcess

from mtmh.config import load_config
from mtmh.serving.app import create_app
from mtmh.serving.server import DrainingServer, bound
from mtmh.serving.service import Service

MOST = 6


@pytest.fixture(scope="module")
def guarded(served_recipe: Path) -> Iterator[ServiceProcess]:
    settings = {"max_connections": MOST, "idle_seconds": 2, "header_seconds": 1, "timeout_ms": 2000}
    with ServiceProcess(served_recipe, **settings) as running:
        yield running


def connect(service: ServiceProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=30)


@pytest.mark.parametrize(
    ("sent", "least"),
    [
        (b"", 2.0),
        (b"GET /healthz HTTP/1.1\r\nHost", 1.0),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 2.0),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he", 1.0),
        (b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", 2.0),
    ],
)
def test_a_connection_without_a_whole_request_is_closed(guarded: ServiceProcess, sent: bytes, least: float) -> None:
    with connect(guarded) as client:
        client.sendall(sent)
        start = time.monotonic()
        received = b""
        while data := client.recv(65_536):
            received += data
        spent = time.monotonic() - start
    assert least - 0.5 <= spent < 20.0
    assert (b" 200 " in received) == (b"\r\n\r\n" in sent and b"POST" not in sent)
    assert (b" 408 " in received) == (b"POST" in sent)


def test_a_connection_that_asks_again_and_again_stays(guarded: ServiceProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", guarded.port, timeout=30)
    sockets = set()
    for _ in range(5):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        sockets.add(id(connection.sock))
        time.sleep(0.8)
    assert len(sockets) == 1, "longer in all than any of the limits"
    connection.close()


def test_connections_beyond_the_limit_are_turned_away_with_one_line_in_the_log(guarded: ServiceProcess) -> None:
    open_ones = [connect(guarded) for _ in range(MOST)]
    try:
        for _ in range(5):
            with connect(guarded) as refused:
                assert refused.recv(4096).startswith(b"HTTP/1.1 503 ")
                assert refused.recv(4096) == b""
    finally:
        for client in open_ones:
            client.close()
    end = time.monotonic() + 20
    while True:  # until the service has seen them go
        try:
            assert guarded.retrieve(triggers=[17], k=3).status == 200
            break
        except (AssertionError, ConnectionError):
            assert time.monotonic() < end
            time.sleep(0.1)
    assert guarded.log.read_text().count("service.max_connections") == 1


def test_health_routes_answer_head_and_options(guarded: ServiceProcess) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        head = guarded.call("HEAD", path)
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["Content-Length"]) > 0
        options = guarded.call("OPTIONS", path)
        assert (options.status, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")


def test_a_compressed_body_is_refused_by_its_name(guarded: ServiceProcess) -> None:
    body = gzip.compress(b'{"triggers": [17]}')
    reply = guarded.call("POST", "/v1/retrieve", raw=body, headers={"Content-Encoding": "gzip"})
    assert (reply.status, reply.json["status"]) == (415, 415)
    plain = guarded.call("POST", "/v1/retrieve", {"triggers": [17]}, headers={"Content-Encoding": "identity"})
    assert plain.status == 200


def test_unknown_items_of_a_history_are_listed(guarded: ServiceProcess) -> None:
    known = guarded.retrieve(history=[17, 4]).json["answers"][0]
    mixed = guarded.retrieve(history=[17, 999_999, 4, 999_999]).json["answers"][0]
    assert (known["ignored"], mixed["ignored"]) == ([], [999_999])
    assert mixed["items"] == known["items"]
    assert guarded.retrieve(history=[999_999]).status == 404


def test_the_first_request_with_features_finds_the_tower_loaded(served_recipe: Path) -> None:
    with ServiceProcess(served_recipe, as_users_do=True) as fresh:
        features = dict.fromkeys(fresh.call("GET", "/v1/index").json["features"])
        question = {"triggers": [999_999], "features": {"999999": features}}
        first, *others = [float(time_of(fresh.retrieve(**question).headers["Server-Timing"])) for _ in range(6)]
    assert first < 10 * max(others) + 50


def time_of(timing: str) -> str:
    return timing.split("embed;dur=")[1].split(",")[0]


def test_an_address_that_is_taken_while_the_index_opens_is_named(served_recipe: Path) -> None:
    ours = bound("127.0.0.1", 0)
    port = ours.getsockname()[1]
    theirs = socket.socket()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    theirs.bind(("127.0.0.1", port))
    theirs.listen()
    config = load_config(served_recipe, [f"service.port={port}"])
    folders = config.model_dir("index"), config.model_dir("evaluation")
    service = Service(config.name, *folders, config.service, config.retrieval)
    server = DrainingServer(uvicorn.Config(create_app(service), log_config=None), service)
    try:
        with pytest.raises(ValueError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*in use"):
            asyncio.run(server.serve(sockets=[ours]))
    finally:
        theirs.close()
        ours.close()
