"""A `mtmh serve` process on a free port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, Self


class Process(Protocol):
    """What a service is asked and told as a process; of `subprocess.Popen`."""

    @property
    def pid(self) -> int:
        """Its number."""

    @property
    def stdout(self) -> IO[str] | None:
        """What it says."""

    def poll(self) -> int | None:
        """The exit code; None: it runs."""

    def wait(self, timeout: float) -> int:
        """The exit code, when it has ended."""

    def send_signal(self, sig: int) -> None:
        """As `os.kill`."""


class ServerProcess:
    """Starts the verb and waits until it listens; ends it at the end of the block.

    Args:
        recipe: to serve.
        log: file for what it says on stderr.
        settings: of the service section, or of another one by their whole name.
        key: for the routes that write; None: nobody may write.
        port: to listen on; 0: a free one.
    """

    def __init__(
        self, recipe: Path, *, log: Path, settings: Mapping[str, Any], key: str | None = None, port: int = 0
    ) -> None:
        words = ["serve", str(recipe), "--port", str(port)]
        for name, value in settings.items():
            whole = name if "." in name else f"service.{name}"
            words += ["--set", f"{whole}={json.dumps(value)}"]
        environment = {name: value for name, value in os.environ.items() if name != "MTMH_API_KEYS"}
        environment |= {"MTMH_API_KEYS": key} if key else {}
        self.key = key
        self.log = log
        self.process = self.start(words, environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"serving http://127\.0\.0\.1:(\d+)", line)
        if not found:
            self.process.wait(timeout=30)
            self.process.stdout.close()
        assert found, f"{line}\n{log.read_text()}"
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> Process:
        """A process of ``mtmh WORDS``, whose stdout can be read."""
        with self.log.open("w") as stderr:
            command = [sys.executable, "-m", "mtmh.cli", *words]
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.stop()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Ends it by a signal; its exit code."""
        self.process.send_signal(sig)
        return self.process.wait(timeout=60)
