"""Headless Chromium, driven over the DevTools protocol through two pipes; needs no driver and no websocket."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

AXE = Path(__file__).parent / "axe-core-4.12.1.min.js"  # unchanged, as Deque Systems publish it (MPL 2.0)

_KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


class Browser:
    """One browser with one page.

    Attributes:
        problems: what the page logged as an error: exceptions, refused resources, breaches of its security policy.
    """

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        assert CHROMIUM is not None
        from_us, self._send = os.pipe()
        self._receive, to_us = os.pipe()
        # The browser reads commands from descriptor 3 and writes to 4.
        command = ["bash", "-c", f'exec "$@" 3<&{from_us} 4>&{to_us}', "bash", CHROMIUM, "--headless", "--no-sandbox"]
        command += ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}"]
        command += [f"--window-size={width},{height}", "--remote-debugging-pipe"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=[from_us, to_us], stdout=quiet, stderr=quiet)
        os.close(from_us)
        os.close(to_us)
        self._buffer = b""
        self._number = 0
        self.problems: list[str] = []
        target = self._command("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._command("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._send)
        os.close(self._receive)

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, to the page."""
        return self._command(method, parameters, self._session)

    def open(self, url: str) -> None:
        # The page looks at its address once, and on going back: the same address anew needs a fresh page.
        self.command("Page.navigate", url="about:blank")
        self.wait("location.href === 'about:blank'")
        self.command("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 20.0) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}\n{self.evaluate('document.body.innerText')}"
            time.sleep(0.03)

    def key(self, key: str) -> None:
        """Presses and releases a key."""
        code = _KEYS[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            pressed = text if kind == "keyDown" else {}
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **pressed)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.command("Input.insertText", text=text)

    def show_as(self, width: int, scheme: str = "light", height: int = 900) -> None:
        """Sizes the page, and shows it in the light or dark scheme."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def breaches(self) -> list[str]:
        """Breaches of the rules of accessibility that axe-core finds on the page: rule, element and what is amiss."""
        self.command("Runtime.evaluate", expression=AXE.read_text())
        found = self.evaluate(
            "axe.run(document, {resultTypes: ['violations']}).then((run) => run.violations.flatMap((rule) =>"
            " rule.nodes.map((node) => `${rule.id}: ${node.target.join(' ')}: ${node.failureSummary}`)))"
        )
        assert isinstance(found, list)
        return found

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))

    def _command(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(event["params"]["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(json.dumps(event["params"]["entry"]))

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + 30
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._receive], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._receive, 1 << 20)
            assert part, "the browser ended"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found
