"""The retriever: search under every head, prerank each head's candidates, merge by quota (paper, section 3.5)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtmh.artifacts import open_artifact
from mtmh.config import MilvusConfig, RetrievalConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.arrays import Indices, ItemId, Mask
from mtmh.data.item_vectors import ItemVectors, StackedVectors
from mtmh.data.parquet import read_whole
from mtmh.errors import RequestError
from mtmh.index.artifact import ITEMS, PRERANKER, IndexSummary
from mtmh.index.files_in_use import FilesInUse
from mtmh.index.store import open_head
from mtmh.index.vector_index import ExactIndex, VectorIndex
from mtmh.index.versions import current_version
from mtmh.retrieval.answers import (
    AnswerRows,
    RetrievedItem,
    SideBySide,
    answer_rows,
    popular_answers,
    trigger_answers,
    user_answers,
)
from mtmh.retrieval.catalogue import Catalogue, ItemDescription
from mtmh.retrieval.cpu_cores import Shares
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.head_search import HeadSearch
from mtmh.retrieval.open_preranker import open_prerankers
from mtmh.retrieval.parallel_search import AllHeads
from mtmh.retrieval.query import Query, QueryPlan, fixed_probes
from mtmh.retrieval.ranking import (
    USER,
    Candidates,
    Extensible,
    Ranker,
    Requests,
    UserSource,
    prerank,
)
from mtmh.retrieval.timings import Timings
from mtmh.retrieval.user_list import UserList, distinct_latest_first, trigger_widths, user_list
from mtmh.signing import verify_signed
from mtmh.tower.export import TOWER, Tower
from mtmh.tower.item_features import RawFeatures

logger = logging.getLogger(__name__)

_NOBODY = np.empty(0, np.int64)


class Retriever:
    """Answers triggers, or a user's history, with items.

    Immutable, and safe to use from several threads: a request changes nothing in it, and ``with_added`` and
    ``with_removed`` give another retriever that shares what did not change.

    Attributes:
        heads: names, the engagement head first.
        catalogue: ids and display columns.
        vectors: head -> [I + F, D] float32 unit-length embeddings, the F items added since the build last.
        defaults: of a request.
        preranker: ranks each head's candidates.
        sorter: scores the answers of all heads.
        tower: embeds items from their features; None: the index has none.
        version: name of the index version, with the number of the last change applied to it (``000003+12``).
        files: of the version, compared before each question; None: it has none.
    """

    def __init__(
        self,
        indexes: Mapping[str, VectorIndex],
        vectors: Mapping[str, ItemVectors],
        catalogue: Catalogue,
        defaults: RetrievalConfig,
        *,
        preranker: Ranker,
        sorter: Ranker,
        tower: Tower | None = None,
        version: str = "",
        files: FilesInUse | None = None,
        threads: ThreadPoolExecutor | None = None,
        cores: Shares | None = None,
    ) -> None:
        self.heads = list(indexes)
        self.catalogue = catalogue
        self.defaults = defaults
        self.preranker = preranker
        self.sorter = sorter
        self.tower = tower
        self.version = version
        self.files = files
        stacked = {
            head: stored if isinstance(stored, StackedVectors) else StackedVectors(stored)
            for head, stored in vectors.items()
        }
        self.vectors = stacked
        self._searches = AllHeads(
            {head: HeadSearch(index, stacked[head]) for head, index in indexes.items()}, threads, cores
        )

    @classmethod
    def load(cls, index_dir: Path, settings: RetrievalConfig | None = None, milvus: MilvusConfig | None = None) -> Self:
        """Opens the published version of an index folder, or an index artifact; embeddings are memory-mapped.

        Args:
            index_dir: the folder.
            settings: ``retrieval`` of the recipe that asks; None: of the one that built the index. Who ranks is a
                part of the index in any case.
            milvus: ``index.milvus`` of the recipe; an index on another Milvus is refused.

        Raises:
            ValueError: no index artifact, files that do not belong together, or a version that is not signed with
                ``settings.trusted_key``; the message names the file.
        """
        index_dir = current_version(index_dir)
        if settings is not None and settings.trusted_key is not None:
            verify_signed(index_dir, settings.trusted_key)
        artifact = open_artifact(index_dir, "index")
        summary = IndexSummary.model_validate(artifact.summary)
        opened = {head: open_head(index_dir, head, summary, milvus) for head in summary.heads}
        indexes = {head: index for head, (index, _) in opened.items()}
        vectors = {head: stored for head, (_, stored) in opened.items()}
        items = read_whole(index_dir / ITEMS)
        if len(items) != summary.num_items:
            raise ValueError(f"{index_dir / ITEMS}: {len(items)} items, the manifest says {summary.num_items}")
        built = summary.ranked_by
        warns = settings is not None
        settings = settings or recorded_section(artifact, "retrieval", RetrievalConfig)
        if warns and (settings.preranker, settings.sorted_by) != (built.preranker, built.sorter):
            logger.warning(
                "index version %s keeps by %s and sorts by %s, and so do its answers; the recipe says %s and %s, which"
                " the next mtmh build-index takes over",
                *(index_dir.name, built.preranker, built.sorter, settings.preranker, settings.sorted_by),
            )
        preranker, sorter = open_prerankers(
            built.preranker, built.sorter, summary.heads, vectors, index_dir / PRERANKER, temperature=built.temperature
        )
        return cls(
            indexes,
            vectors,
            Catalogue(items),
            settings.of_index(built.preranker, built.sorter, summary.num_probes),
            preranker=preranker,
            sorter=sorter,
            tower=Tower(index_dir) if (index_dir / TOWER).is_dir() else None,
            version=index_dir.name,
            files=FilesInUse(artifact),
        )

    @property
    def num_items(self) -> int:
        """Items that may be answers."""
        return self.catalogue.num_answerable

    @property
    def num_probes(self) -> int:
        """Clusters that a request searches if it does not say."""
        return fixed_probes(self.defaults)

    def exact(self) -> Retriever:
        """The same retriever over exact search: what is left of a difference to it is the index's loss."""
        indexes = {head: ExactIndex.build(search.vectors.base) for head, search in self._searches.by_head.items()}
        return self._changed(self.catalogue, self.vectors, indexes)

    def with_added(
        self, items: pa.Table, vectors: Mapping[str, npt.NDArray[np.float32]], *, answerable: bool = True
    ) -> Retriever:
        """A retriever that has more items.

        Args:
            items: N rows, ``item_id``, display columns, and features if a learned preranker is to go by them; none of
                the ids is in an answer yet.
            vectors: head -> [N, D] float32, unit length.
            answerable: False: the items only serve as triggers.
        """
        stacked = {head: search.vectors.with_added(vectors[head]) for head, search in self._searches.by_head.items()}
        changed = self._changed(self.catalogue.with_added(items, answerable=answerable), stacked)

        def extended(ranker: Ranker) -> Ranker:
            return ranker.with_added(items, vectors, stacked) if isinstance(ranker, Extensible) else ranker

        changed.preranker = extended(self.preranker)
        changed.sorter = changed.preranker if self.sorter is self.preranker else extended(self.sorter)
        return changed

    def with_removed(self, ids: Sequence[ItemId]) -> Retriever:
        """A retriever that never answers with these items.

        Raises:
            UnknownItemError: an id is not in the index.
        """
        return self._changed(self.catalogue.with_removed(self.catalogue.indices(ids, "item")), self.vectors)

    def with_returned(self, indices: Indices) -> Retriever:
        """A retriever that answers with removed items of these indices again, as before they were removed."""
        return self._changed(self.catalogue.with_returned(indices), self.vectors)

    def with_version(self, version: str) -> Retriever:
        """This retriever under another version name."""
        changed = self._changed(self.catalogue, self.vectors)
        changed.version = version
        return changed

    def retrieve(self, query: Query, timings: Timings | None = None) -> list[list[RetrievedItem]]:
        """Answers each trigger of a query with a list of its own.

        Args:
            query: with triggers.
            timings: seconds by stage are added here.

        Returns:
            one list a trigger, grouped by head, each head's in its own order.

        Raises:
            UnknownItemError: an unknown trigger, unless ``retrieval.unknown`` is ``popular``.
            RequestError: the query does not fit the heads or the ids.
        """
        timings = timings or Timings()
        knowing = self._knowing(query, timings)
        plan = query.plan(self.defaults, self.heads)
        with timings.stage("embed"):
            indices = knowing._triggers(query.ids)
            known = indices >= 0
            allowed = query.filters.allowed(knowing.catalogue, _NOBODY)
        requests = Requests.anonymous(indices[known])
        kept = knowing._keep(_taking_part(plan), requests, plan, allowed, timings)
        with timings.stage("merge"):
            answers = iter(trigger_answers(requests, kept, plan.quotas, knowing.sorter, knowing.catalogue))
        with timings.stage("describe"):
            return [
                next(answers) if is_known else popular_answers(knowing.catalogue, plan.k, allowed, trigger)
                for trigger, is_known in zip(query.ids, known.tolist(), strict=True)
            ]

    def answer_rows(self, triggers: Indices, plan: QueryPlan) -> AnswerRows:
        """Answers known items with lists as ``retrieve`` does, as arrays.

        Args:
            triggers: [T] item indices.
            plan: of the request.
        """
        requests = Requests.anonymous(triggers)
        allowed = Filters().allowed(self.catalogue, _NOBODY)  # without what was removed
        kept = self._keep(_taking_part(plan), requests, plan, allowed, Timings())
        return answer_rows(requests, kept, plan.quotas, self.sorter)

    def retrieve_user(self, query: Query, timings: Timings | None = None) -> list[RetrievedItem]:
        """Answers a user with one list.

        Every item of the history is a trigger. Under each head the answers of all triggers are pooled, an item that
        several triggers bring counting once with its best rank; the quota merge takes each head's share of ``k`` from
        the pools.

        Args:
            query: with a history.
            timings: seconds by stage are added here.

        Returns:
            ``k`` answers, or all that are allowed if these are fewer; best first by score.

        Raises:
            UnknownItemError: nothing of the history is known, unless ``retrieval.unknown`` is ``popular``. Unknown
                items beside known ones are passed over; ``unknown`` tells which.
            RequestError: the query does not fit the heads or the ids.
        """
        timings = timings or Timings()
        knowing = self._knowing(query, timings)
        plan = query.plan(self.defaults, self.heads, user_source=isinstance(self.sorter, UserSource))
        with timings.stage("embed"):
            indices = distinct_latest_first(knowing.catalogue.find(query.ids, "item of the history"))
            if not len(indices) and self.defaults.unknown == "error":
                raise self.catalogue.unknown(query.ids, "history:")
            allowed = query.filters.allowed(knowing.catalogue, indices)
        if not len(indices):
            with timings.stage("describe"):
                return popular_answers(knowing.catalogue, plan.k, allowed, None)
        requests = Requests(indices, np.zeros(len(indices), np.int64), indices[None, :])
        for kept in trigger_widths(query.k_trigger or self.defaults.k, plan.k, len(indices)):
            found = knowing._pooled(requests, replace(plan, kept=kept), allowed, timings)
            if len(found.items) == plan.k:
                break
        with timings.stage("describe"):
            return user_answers(found, [*_taking_part(plan), USER], knowing.catalogue)

    def retrieve_side_by_side(self, query: Query, timings: Timings | None = None) -> SideBySide:
        """Shows what each head alone and the merge answer to the only trigger of a query; errors as ``retrieve``."""
        if len(query.ids) != 1 or query.triggers is None:
            raise RequestError(f"side by side: expected one trigger, not {len(query.ids)} items")
        timings = timings or Timings()
        knowing = self._knowing(query, timings)
        plan = query.plan(self.defaults, self.heads)
        with timings.stage("embed"):
            index = knowing.catalogue.indices(query.ids, "trigger")
            allowed = query.filters.allowed(knowing.catalogue, _NOBODY)
        requests = Requests.anonymous(index)
        kept = knowing._keep(self.heads, requests, plan, allowed, timings)

        def merged(lists: Sequence[Candidates], quotas: Mapping[str, int]) -> list[RetrievedItem]:
            return trigger_answers(requests, lists, quotas, knowing.sorter, knowing.catalogue)[0]

        with timings.stage("merge"):
            alone = {candidates.head: merged([candidates], {candidates.head: plan.k}) for candidates in kept}
            together = merged(kept, plan.quotas)
        with timings.stage("describe"):
            shown = [knowing.catalogue.ids(index)[0], *(answer.item for found in alone.values() for answer in found)]
            shown = list(dict.fromkeys(shown))
            described = dict(zip(shown, knowing.describe(shown), strict=True))
        return SideBySide(shown[0], plan.alpha, alone, together, described)

    def describe(self, ids: Sequence[ItemId]) -> list[ItemDescription]:
        """Display columns of items; empty ones for ids that the index does not know."""
        return self.catalogue.describe(self.catalogue.find(ids, "item"))

    def unknown(self, query: Query) -> list[ItemId]:
        """Items of a query that the index does not know and that come without features, each once."""
        typed = dict.fromkeys(self.catalogue.typed(item, "item") for item in query.ids)
        known = {self.catalogue.typed(item, "item") for item in query.features}
        places = self.catalogue.find(list(typed), "item")
        return [item for item, place in zip(typed, places.tolist(), strict=True) if place < 0 and item not in known]

    def search(
        self,
        head: str,
        triggers: Indices,
        k_ann: int,
        num_probes: int,
        *,
        needed: int = 1,
    ) -> Candidates:
        """Nearest items of triggers under one head; the trigger itself is not among them.

        Args:
            head: its name.
            triggers: [T] item indices.
            k_ann: candidates a trigger.
            num_probes: clusters searched.
            needed: candidates for which further clusters are searched.

        Returns:
            [T, k_ann] candidates, best first, missing ones at the end.
        """
        return self._searches.search(head, triggers, k_ann, num_probes, needed=needed, allowed=None)

    def _keep(
        self, heads: Sequence[str], requests: Requests, plan: QueryPlan, allowed: Mask | None, timings: Timings
    ) -> list[Candidates]:
        """The ``plan.kept`` best candidates of each trigger under each of the heads."""
        with timings.stage("search"):
            found = self._searches.search_all(heads, requests.triggers, plan, allowed)
        with timings.stage("prerank"):
            return [prerank(self.preranker, requests, candidates, plan.kept) for candidates in found]

    def _pooled(self, requests: Requests, plan: QueryPlan, allowed: Mask | None, timings: Timings) -> UserList:
        kept = self._keep(_taking_part(plan), requests, plan, allowed, timings)
        quotas = [plan.quotas[candidates.head] for candidates in kept]
        with timings.stage("prerank"):
            ranker, sorter = self.preranker, self.sorter
            if isinstance(sorter, UserSource):  # what speaks of the user chooses from the pools, too
                own, sorter = sorter.propose(requests, kept, plan.k, allowed)
                ranker = sorter
                if plan.of_user:
                    kept.append(own)
                    quotas.append(plan.of_user)
            rankings = [ranker.score(requests, candidates) for candidates in kept]
        with timings.stage("merge"):
            return user_list(requests, kept, rankings, quotas, sorter)

    def _knowing(self, query: Query, timings: Timings) -> Retriever:
        """A retriever for one request that knows the unknown triggers by their features; without any, this one.

        Raises:
            RequestError: features that do not fit.
            DamagedArtifactError: a file in use was cut off.
            ValueError: there is no tower.
        """
        if self.files is not None:
            self.files.check()
        if not query.features:
            return self
        with timings.stage("embed"):
            return self._with_triggers(query.ids, query.features)

    def _with_triggers(self, triggers: Sequence[ItemId], features: Mapping[ItemId, RawFeatures]) -> Retriever:
        typed = {self.catalogue.typed(item, "trigger"): row for item, row in features.items()}
        ids = list(dict.fromkeys(self.catalogue.typed(item, "trigger") for item in triggers))
        unknown = self.catalogue.find(ids, "trigger") < 0
        rows = [
            {**typed[item], "item_id": item} for item, new in zip(ids, unknown, strict=True) if new and item in typed
        ]
        if not rows:
            return self
        if self.tower is None:
            raise ValueError("features: this index has no tower to embed them; build it again from a checkpoint")
        table = self.tower.features.table(rows)
        return self.with_added(table, self.tower.embed(table), answerable=False)

    def _triggers(self, ids: Sequence[ItemId]) -> npt.NDArray[np.int64]:
        """Item indices; -1: unknown, where that is answered with popular items."""
        if self.defaults.unknown == "error":
            return self.catalogue.indices(ids, "trigger")
        return self.catalogue.find(ids, "trigger")

    def _changed(
        self,
        catalogue: Catalogue,
        vectors: Mapping[str, StackedVectors],
        indexes: Mapping[str, VectorIndex] | None = None,
    ) -> Retriever:
        """This retriever with some of its parts replaced."""
        return Retriever(
            indexes or {head: search.index for head, search in self._searches.by_head.items()},
            vectors,
            catalogue,
            self.defaults,
            preranker=self.preranker,
            sorter=self.sorter,
            tower=self.tower,
            version=self.version,
            files=self.files,
            threads=self._searches.threads,
            cores=self._searches.cores,
        )


def _taking_part(plan: QueryPlan) -> list[str]:
    """The heads with a share, and all where a share is the user's own, for which any head may find the best.

    Another head is not searched: each of those with a share finds all that there is.
    """
    return [head for head, quota in plan.quotas.items() if quota or plan.of_user]
