"""The searches of all heads: one after the other or a thread each, in blocks of triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from mtmh.config import RetrievalConfig
from mtmh.serving.catalogue import Indices, Mask
from mtmh.serving.cores import busy_threads, usable_cores
from mtmh.serving.head_search import HeadSearch
from mtmh.serving.preranker import Candidates

_SEARCH_TRIGGERS = 4096  # searched at a time: bounds memory at large k_ann


class AllHeads:
    """Searches heads by name.

    Args:
        by_head: the search of each head.
        threads: to share with another one of these; None: new ones.

    Attributes:
        by_head: the search of each head.
        threads: for all heads but the first.
    """

    def __init__(self, by_head: Mapping[str, HeadSearch], threads: ThreadPoolExecutor | None = None) -> None:
        self.by_head = by_head
        self._cores = usable_cores()  # reads files, so not with every search
        self.threads = threads or ThreadPoolExecutor(max_workers=64, thread_name_prefix="head-search")

    def search(
        self, head: str, triggers: Indices, k_ann: int, num_probes: int, *, needed: int, allowed: Mask | None
    ) -> Candidates:
        """As ``Retriever.search``."""
        search = self.by_head[head].search
        parts = [
            search(
                triggers[start : start + _SEARCH_TRIGGERS], k_ann, num_probes=num_probes, needed=needed, allowed=allowed
            )
            for start in range(0, max(len(triggers), 1), _SEARCH_TRIGGERS)
        ]
        if len(parts) == 1:
            return Candidates(head, *parts[0])
        return Candidates(
            head, np.concatenate([items for items, _ in parts]), np.concatenate([scores for _, scores in parts])
        )

    def search_all(
        self, heads: Sequence[str], triggers: Indices, settings: RetrievalConfig, allowed: Mask | None
    ) -> list[Candidates]:
        """The nearest items of each trigger under each of the heads."""
        own_threads = faiss.omp_get_max_threads()  # OpenMP keeps it for each calling thread

        def search(head: str) -> Candidates:
            faiss.omp_set_num_threads(own_threads)
            k_ann, probes = settings.k_ann, settings.num_probes
            return self.search(head, triggers, k_ann, probes, needed=settings.k, allowed=allowed)

        others = heads[1:] if self._searches_in_parallel(len(triggers)) else []
        running = [self.threads.submit(search, head) for head in others]
        found = [search(head) for head in heads if head not in others]
        return found + [one.result() for one in running]

    def _searches_in_parallel(self, num_queries: int) -> bool:
        """Whether a thread a head pays: faiss spreads the queries of one call over its own threads, where it may."""
        return self._cores > busy_threads() or num_queries < faiss.omp_get_max_threads()
