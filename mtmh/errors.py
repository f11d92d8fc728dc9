"""The error of a request that cannot be answered as it is asked, known to every layer."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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
