"""The searches of all heads: a thread each while cores are free, else one after the other; in blocks of triggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np

from mtmh.data.arrays import Indices, Mask
from mtmh.retrieval.cpu_cores import Shares, usable_cores
from mtmh.retrieval.head_search import HeadSearch
from mtmh.retrieval.query import QueryPlan
from mtmh.retrieval.ranking import Candidates

_SEARCH_TRIGGERS = 4096  # searched at a time: bounds memory at large k_ann


class AllHeads:
    """Searches heads by name.

    Args:
        by_head: the search of each head.
        threads: to share with another one of these; None: new ones.
        cores: likewise.

    Attributes:
        by_head: the search of each head.
        threads: for all heads but the first.
        cores: which the searches of all requests share.
    """

    def __init__(
        self, by_head: Mapping[str, HeadSearch], threads: ThreadPoolExecutor | None = None, cores: Shares | None = None
    ) -> None:
        self.by_head = by_head
        self.cores = cores or Shares(usable_cores())
        self.threads = threads or ThreadPoolExecutor(max_workers=64, thread_name_prefix="head-search")

    def search(
        self, head: str, triggers: Indices, k_ann: int, num_probes: int, *, needed: int, allowed: Mask | None
    ) -> Candidates:
        """As ``Retriever.search``; a trigger that comes several times, as in a batch of requests, is searched once."""
        distinct, places = np.unique(triggers, return_inverse=True)
        if len(distinct) < len(triggers):
            found = self.search(head, distinct, k_ann, num_probes, needed=needed, allowed=allowed)
            return Candidates(head, found.items[places], found.scores[places])
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
        self, heads: Sequence[str], triggers: Indices, plan: QueryPlan, allowed: Mask | None
    ) -> list[Candidates]:
        """The nearest items of each trigger under each of the heads."""
        own_threads = faiss.omp_get_max_threads()  # OpenMP keeps it for each calling thread

        def search_head(head: str) -> Candidates:
            faiss.omp_set_num_threads(own_threads)
            return self.search(head, triggers, plan.k_ann, plan.num_probes, needed=plan.kept, allowed=allowed)

        # faiss spreads the queries of one call over its own threads.
        with self.cores.share(len(heads), max(1, min(own_threads, len(triggers)))) as in_parallel:
            others = heads[1:] if in_parallel else []
            running = [self.threads.submit(search_head, head) for head in others]
            found = [search_head(head) for head in heads if head not in others]
            return found + [search.result() for search in running]
