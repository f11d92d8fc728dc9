"""Errors in the words of every layer: a request without an answer, a name that is not known, a process that ended."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class RequestError(ValueError):
    """A request that cannot be answered: its sender has to change it. The service answers with 422 and the message.

    Any other ``ValueError`` is about files or settings, or a fault of ours; of these the client is told nothing.

    Args:
        expected: in words; the whole message, where no single field is at fault.
        field: of the request, as in ``filters.where.price``.
    """

    def __init__(self, expected: str, field: str = "") -> None:
        super().__init__(f"{field}: {expected}" if field else expected)
        self.expected = expected
        self.field = field


def meant(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'brand'?`` where a known name is near to this one, else nothing."""
    known = {known.casefold(): known for known in names}
    close = get_close_matches(name.casefold(), known, n=1)
    return f"; did you mean {known[close[0]]!r}?" if close else ""


def last_words(code: int, log: Path) -> str:
    """The reason why a process failed: the last line that it wrote, or the signal that ended it.

    Args:
        code: as `subprocess` returns it.
        log: what the process wrote.
    """
    if code < 0:
        memory = ", as the system does where memory is short" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{memory}"
    return "".join(log.read_text().strip().splitlines()[-1:]) or "no output"
