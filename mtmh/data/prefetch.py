"""Runs an iterator in a background thread, a few items ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1  # how soon the thread notices that nobody listens any more


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def prefetched(source: Iterator[T], depth: int) -> Iterator[T]:
    """Yields what ``source`` yields.

    The thread starts with the first item that is asked for. It ends with the source, with an error, which the consumer
    gets, or when the consumer closes or drops the iterator.

    Args:
        source: runs in the thread.
        depth: items held ready, at least 1.
    """
    ready: queue.Queue[_Item[T] | _End] = queue.Queue(maxsize=depth)
    abandoned = threading.Event()

    def put(message: _Item[T] | _End) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(message, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        error: BaseException | None = None
        try:
            for value in source:
                if not put(_Item(value)):
                    return
        except BaseException as raised:  # the consumer's to handle
            error = raised
        put(_End(error))

    thread = threading.Thread(target=work, name="mtmh-prefetch", daemon=True)
    thread.start()
    try:
        while isinstance(message := ready.get(), _Item):
            yield message.value
        if message.error is not None:
            raise message.error
    finally:
        abandoned.set()
        thread.join()
