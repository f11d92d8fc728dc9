"""The error of a request that cannot be answered as it is asked, known to every layer."""

from __future__ import annotations


class RequestError(ValueError):
    """A request that cannot be answered: its sender has to change it. The service answers with 422 and the message.

    Any other ``ValueError`` is about files or settings, or a fault of ours; of these the client is told nothing.
    """
