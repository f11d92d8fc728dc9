"""The index in use: one reference that every request reads once, replaced as a whole by a new version."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from mtmh.config import MilvusConfig, RetrievalConfig
from mtmh.data.arrays import ItemId
from mtmh.index.files_in_use import FilesInUse
from mtmh.live.live_index import LiveIndex
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever
from mtmh.serving.prometheus import ServiceMetrics

if TYPE_CHECKING:
    from mtmh.content.fresh import FreshContent

log = logging.getLogger("mtmh.serve")

_WARMING = 16  # questions of each form


class AnswerCache:
    """The answers used last, already encoded. For one thread: the event loop's.

    Args:
        capacity: bytes of questions and answers kept; 0: none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._answers: OrderedDict[str, bytes] = OrderedDict()

    def get(self, question: str) -> bytes | None:
        """The answer to a question, if it is there."""
        answer = self._answers.get(question)
        if answer is not None:
            self._answers.move_to_end(question)
        return answer

    def put(self, question: str, answer: bytes) -> None:
        """Keeps an answer; those not used for longest leave. One that is larger than all that is kept is not."""
        size = len(question) + len(answer)
        if question in self._answers or size > self._capacity:
            return
        self._answers[question] = answer
        self._size += size
        while self._size > self._capacity:
            left, gone = self._answers.popitem(last=False)
            self._size -= len(left) + len(gone)


class Snapshot:
    """One state of the index with the answers it gave: both go together.

    Attributes:
        retriever: answers.
        cache: its answers.
    """

    def __init__(self, retriever: Retriever, cache_bytes: int) -> None:
        self.retriever = retriever
        self.cache = AnswerCache(cache_bytes)

    @property
    def version(self) -> str:
        """Of the index."""
        return self.retriever.version


class CurrentIndex:
    """Holds the snapshot in use and replaces it as a whole.

    A request reads ``snapshot`` once and works with what it got, so its answer is of one version, and an old snapshot
    lives until the last request that uses it ends.

    Args:
        index_dir: versioned folder of the index.
        metrics: to count in.
        cache_bytes: size of the cache of answers.
        settings: defaults of a request.
        milvus: ``index.milvus`` of the recipe; a version on another Milvus is refused.
        content: the teacher, for added items without a content embedding.
    """

    def __init__(
        self,
        index_dir: Path,
        metrics: ServiceMetrics,
        cache_bytes: int,
        settings: RetrievalConfig,
        milvus: MilvusConfig | None = None,
        content: FreshContent | None = None,
    ) -> None:
        self._live = LiveIndex(index_dir, settings, milvus)
        self._content = content
        self._metrics = metrics
        self._cache_bytes = cache_bytes
        self._swapping = threading.Lock()
        self._held: WeakSet[FilesInUse] = WeakSet()
        self._refused = ""
        _warm(self._live.retriever)
        self.snapshot = Snapshot(self._live.retriever, cache_bytes)
        self._tell()

    @property
    def has_versions(self) -> bool:
        """True if changes have a place."""
        return self._live.has_versions

    def hold_files(self) -> None:
        """Makes writers of the mapped files wait until `give_way`; the process must have a handler of SIGIO."""
        if (files := self.snapshot.retriever.files) is not None:
            self._held.add(files)
            files.hold()

    def give_way(self, idle: Callable[[], bool]) -> None:
        """Lets waiting writers at the files, once nobody reads them."""
        for files in list(self._held):
            files.give_way(idle)

    def release_files(self) -> None:
        """Holds no files any more."""
        for files in list(self._held):
            files.release()

    def refresh(self) -> None:
        """Takes a new version or items of other processes into use; a bad one is refused and the old one stays."""
        try:
            self._live.refresh()
            self._swap()
        except Exception as error:
            if repr(error) != self._refused:  # said once, not at every look
                self._refused = repr(error)
                self._metrics.index_refused.inc()
                surprise = None if isinstance(error, (ValueError, OSError)) else error
                log.error("index version refused, %s stays: %s", self.snapshot.version, error, exc_info=surprise)
            return
        self._refused = ""

    def add(self, rows: Sequence[Mapping[str, Any]], deadline: float) -> tuple[str, list[ItemId]]:
        """Adds fresh items; version that has them, and their ids."""
        added = self._live.add(rows, content=self._content, deadline=deadline)
        return self._swap(), added

    def remove(self, items: Sequence[ItemId], deadline: float) -> str:
        """Removes items; version that lacks them."""
        self._live.remove(items, deadline=deadline)
        return self._swap()

    def _swap(self) -> str:
        with self._swapping:
            retriever = self._live.retriever
            if retriever is not self.snapshot.retriever:
                _warm(retriever)
                self.snapshot = Snapshot(retriever, self._cache_bytes)
                self._metrics.index_swaps.inc()
                self._tell()
                log.info("index version %s answers, %d items", self.snapshot.version, retriever.num_items)
            return self.snapshot.version

    def _tell(self) -> None:
        self._metrics.index_info.clear()
        self._metrics.index_info.labels(self.snapshot.version).set(1)
        self._metrics.index_items.set(self.snapshot.retriever.num_items)


def _warm(retriever: Retriever) -> None:
    """Asks the first questions, so that no client waits for pages that are on disk yet, or for the tower to load."""
    if not len(retriever.catalogue):
        return
    some = retriever.catalogue.ids(np.linspace(0, len(retriever.catalogue) - 1, _WARMING).astype(np.int64))
    retriever.retrieve(Query(some))
    retriever.retrieve_user(Query(history=some))
    if retriever.tower is not None:
        row = {"item_id": some[0], **dict.fromkeys(retriever.tower.features.names)}
        retriever.tower.embed(retriever.tower.features.table([row]))
