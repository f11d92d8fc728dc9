"""A process of `mtmh serve`, and a plain HTTP client for it."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forked_verb import ForkedVerb

from benchmarks.serving.server import Process, ServerProcess

KEY = "correct horse"


@dataclass
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ServiceProcess(ServerProcess):
    """With settings under which a busy machine refuses nothing unless a test wants it.

    Forked from a process that has imported what takes seconds; ``as_users_do``: ``python -m mtmh.cli serve``.
    """

    def __init__(self, recipe: Path, *, key: str | None = KEY, as_users_do: bool = False, **settings: Any) -> None:
        self.as_users_do = as_users_do
        defaults = {
            "threads": 2,
            "drain_seconds": 0.3,
            "reload_seconds": 0.1,
            "timeout_ms": 20_000,
            "max_lag_ms": 20_000,
            "cache_mb": 0,
        }
        log = recipe.parent / f"serve-{time.monotonic_ns()}.log"
        super().__init__(recipe, log=log, settings=defaults | settings, key=key)

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> Process:
        return super().start(words, environment) if self.as_users_do else ForkedVerb(words, environment, self.log)

    def call(
        self, method: str, path: str, content: Any = None, *, raw: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            body = raw if raw is not None else None if content is None else json.dumps(content).encode()
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return Reply(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def retrieve(self, **question: Any) -> Reply:
        return self.call("POST", "/v1/retrieve", question)

    def write(self, method: str, path: str, content: Any = None) -> Reply:
        return self.call(method, path, content, headers={"X-API-Key": KEY})

    def metric(self, name: str) -> float:
        """The value of one line of /metrics, labels included in the name."""
        for line in self.call("GET", "/metrics").body.decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")

    def wait_for(self, version: str, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while (now := self.call("GET", "/readyz").json.get("version")) != version:
            assert time.monotonic() < end, f"still version {now}, not {version}\n{self.log.read_text()}"
            time.sleep(0.05)
