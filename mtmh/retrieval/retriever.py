"""The retriever: search under every head, prerank each head's candidates, merge by quota (paper, section 3.5)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mtmh.artifacts import open_artifact
from mtmh.config import LossConfig, RetrievalConfig
from mtmh.config.recorded import recorded_section
from mtmh.data.item_vectors import ItemVectors
from mtmh.data.stacked_vectors import StackedVectors
from mtmh.errors import RequestError
from mtmh.index.artifact import ITEMS, PRERANKER, IndexSummary
from mtmh.index.store import open_head
from mtmh.index.vector_index import ExactIndex, VectorIndex
from mtmh.index.versions import current_version
from mtmh.retrieval.answers import RetrievedItem, SideBySide, merged_answers, popular_answers, user_answers
from mtmh.retrieval.catalogue import Catalogue, Indices, ItemDescription, ItemId, Mask
from mtmh.retrieval.cores import Shares
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.head_search import HeadSearch
from mtmh.retrieval.open_preranker import open_prerankers
from mtmh.retrieval.parallel_search import AllHeads
from mtmh.retrieval.query import asked_settings, head_slots
from mtmh.retrieval.ranking import (
    Candidates,
    Extensible,
    Preranker,
    Requests,
    prerank,
    shared_prerank,
)
from mtmh.retrieval.timings import Timings
from mtmh.retrieval.user_list import UserList, latest_first, trigger_widths, user_list
from mtmh.tower.export import TOWER, Tower
from mtmh.tower.item_features import Row

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
    """

    def __init__(
        self,
        indexes: Mapping[str, VectorIndex],
        vectors: Mapping[str, ItemVectors],
        catalogue: Catalogue,
        defaults: RetrievalConfig,
        *,
        preranker: Preranker,
        sorter: Preranker,
        tower: Tower | None = None,
        version: str = "",
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
        stacked = {head: of if isinstance(of, StackedVectors) else StackedVectors(of) for head, of in vectors.items()}
        self.vectors = stacked
        self._searches = AllHeads(
            {head: HeadSearch(index, stacked[head]) for head, index in indexes.items()}, threads, cores
        )

    @classmethod
    def load(cls, index_dir: Path, settings: RetrievalConfig | None = None) -> Self:
        """Opens the published version of an index folder, or an index artifact; embeddings are memory-mapped.

        Args:
            index_dir: the folder.
            settings: ``retrieval`` of the recipe that asks; None: of the one that built the index. Who ranks is a
                part of the index in any case.

        Raises:
            ValueError: no index artifact, or files that do not belong together; the message names the file.
        """
        index_dir = current_version(index_dir)
        artifact = open_artifact(index_dir, "index")
        summary = IndexSummary.model_validate(artifact.summary)
        opened = {head: open_head(index_dir, head, summary) for head in summary.heads}
        indexes = {head: index for head, (index, _) in opened.items()}
        vectors = {head: stored for head, (_, stored) in opened.items()}
        items = pq.read_table(index_dir / ITEMS)
        if len(items) != summary.num_items:
            raise ValueError(f"{index_dir / ITEMS}: {len(items)} items, the manifest says {summary.num_items}")
        built = recorded_section(artifact, "retrieval", RetrievalConfig)
        asked = built if settings is None else settings
        if (asked.preranker, asked.sorted_by) != (built.preranker, built.sorted_by):
            logger.warning(
                "index version %s keeps by %s and sorts by %s, and so do its answers; the recipe says %s and %s, which"
                " the next mtmh build-index takes over",
                *(index_dir.name, built.preranker, built.sorted_by, asked.preranker, asked.sorted_by),
            )
        preranker, sorter = open_prerankers(
            built,
            summary.heads,
            vectors,
            folder=index_dir / PRERANKER,
            temperature=recorded_section(artifact, "loss", LossConfig).temperature,
        )
        return cls(
            indexes,
            vectors,
            Catalogue(items),
            asked.of_index(built),
            preranker=preranker,
            sorter=sorter,
            tower=Tower(index_dir) if (index_dir / TOWER).is_dir() else None,
            version=index_dir.name,
        )

    @property
    def num_items(self) -> int:
        """Items that may be answers."""
        return self.catalogue.num_answerable

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

        def extended(ranker: Preranker) -> Preranker:
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

    def retrieve(
        self,
        triggers: Sequence[ItemId],
        *,
        k: int | None = None,
        k_ann: int | None = None,
        num_probes: int | None = None,
        alpha: float | None = None,
        shares: Mapping[str, float] | None = None,
        filters: Filters | None = None,
        features: Mapping[ItemId, Row] | None = None,
        timings: Timings | None = None,
    ) -> list[list[RetrievedItem]]:
        """Answers each trigger with ``k`` items, or with all that are allowed if these are fewer.

        Args:
            triggers: item ids.
            k: answers a trigger.
            k_ann: candidates a head; may exceed the catalogue.
            num_probes: clusters searched a head.
            alpha: percent of the answers from the engagement head; the other heads share the rest equally. With
                ``preranking: shared`` the shared ranking alone says what is answered, and neither this nor ``shares``.
            shares: share of each head instead, summing to 1; heads that are not named have none.
            filters: what may be an answer; a trigger is never in its own.
            features: features of triggers that the index may not know, by id; they are embedded on the fly. What the
                index knows it answers from its own vectors.
            timings: seconds by stage are added here.

        Returns:
            one list a trigger, grouped by head, each head's in its own order.

        Raises:
            UnknownItemError: an unknown trigger, unless ``retrieval.unknown`` is ``popular``.
            RequestError: a setting out of range.
        """
        timings = timings or Timings()
        asked = self._knowing(triggers, features or {}, timings)
        settings = asked_settings(asked.defaults, k, k_ann, num_probes, alpha)
        quotas = head_slots(settings, asked.heads, alpha, shares)
        with timings.stage("embed"):
            indices = asked._triggers(triggers)
            known = indices >= 0
            allowed = (filters or Filters()).allowed(asked.catalogue, _NOBODY)
        requests = Requests.anonymous(indices[known])
        heads, quotas = asked._taking_part(quotas)
        kept = asked._prerank(heads, requests, settings, allowed, timings)
        with timings.stage("merge"):
            answers = iter(merged_answers(requests, kept, quotas, asked.sorter, asked.catalogue))
        with timings.stage("describe"):
            return [
                next(answers) if is_known else popular_answers(asked.catalogue, settings.k, allowed, trigger)
                for trigger, is_known in zip(triggers, known.tolist(), strict=True)
            ]

    def retrieve_user(
        self,
        history: Sequence[ItemId],
        *,
        k: int | None = None,
        k_trigger: int | None = None,
        k_ann: int | None = None,
        num_probes: int | None = None,
        alpha: float | None = None,
        shares: Mapping[str, float] | None = None,
        filters: Filters | None = None,
        features: Mapping[ItemId, Row] | None = None,
        timings: Timings | None = None,
    ) -> list[RetrievedItem]:
        """Answers a user with one list.

        Every item of the history is a trigger. Under each head the answers of all triggers are pooled, an item that
        several triggers bring counting once with its best rank; the quota merge takes each head's share of ``k`` from
        the pools.

        Args:
            history: item ids the user engaged with, the latest last; a repeated one counts once, at its last place. The
                order matters to a learned preranker alone, which goes by the latest.
            k: answers in all.
            k_trigger: candidates a trigger and head keeps after preranking; more where the list would not fill.
            k_ann: candidates a trigger and head.
            num_probes: clusters searched a head.
            alpha: percent of the answers from the engagement head; the other heads share the rest equally.
            shares: share of each head instead, summing to 1.
            filters: what may be an answer.
            features: features of items of the history that the index may not know, by id.
            timings: seconds by stage are added here.

        Returns:
            ``k`` answers, or all that are allowed if these are fewer; best first by score.

        Raises:
            UnknownItemError: an item of the history is unknown. With ``retrieval.unknown = popular`` it is passed
                over, and a history of which nothing is known is answered with popular items.
            RequestError: an empty history, or a setting out of range.
        """
        timings = timings or Timings()
        if not len(history):
            raise RequestError("history is empty, expected at least one item")
        asked = self._knowing(history, features or {}, timings)
        if k_trigger is not None and k_trigger < 1:
            raise RequestError(f"k_trigger is {k_trigger}, expected at least 1")
        settings = asked_settings(asked.defaults, k, k_ann, num_probes, alpha)
        quotas = head_slots(settings, asked.heads, alpha, shares)
        with timings.stage("embed"):
            indices = latest_first(asked._triggers(history))
            allowed = (filters or Filters()).allowed(asked.catalogue, indices)
        if not len(indices):
            with timings.stage("describe"):
                return popular_answers(asked.catalogue, settings.k, allowed, None)
        requests = Requests(indices, np.zeros(len(indices), np.int64), indices[None, :])
        heads, quotas = asked._taking_part(quotas)
        for keep in trigger_widths(k_trigger or asked.defaults.k, settings.k, len(indices)):
            kept = asked._prerank(heads, requests, settings.model_copy(update={"k": keep}), allowed, timings)
            found = asked._pooled(requests, kept, quotas, timings)
            if len(found.items) == settings.k:
                break
        with timings.stage("describe"):
            return user_answers(found, heads, asked.catalogue)

    def retrieve_side_by_side(
        self,
        trigger: ItemId,
        *,
        k: int | None = None,
        k_ann: int | None = None,
        num_probes: int | None = None,
        alpha: float | None = None,
        shares: Mapping[str, float] | None = None,
        filters: Filters | None = None,
        features: Mapping[ItemId, Row] | None = None,
        timings: Timings | None = None,
    ) -> SideBySide:
        """What each head alone and the merge answer to one trigger; arguments as ``retrieve``."""
        timings = timings or Timings()
        asked = self._knowing([trigger], features or {}, timings)
        settings = asked_settings(asked.defaults, k, k_ann, num_probes, alpha)
        quotas = head_slots(settings, asked.heads, alpha, shares)
        with timings.stage("embed"):
            index = asked.catalogue.indices([trigger], "trigger")
            allowed = (filters or Filters()).allowed(asked.catalogue, _NOBODY)
        requests = Requests.anonymous(index)
        with timings.stage("search"):
            found = asked._searches.search_all(asked.heads, requests.triggers, settings, allowed)
        with timings.stage("prerank"):
            by_head = [prerank(asked.preranker, requests, one, settings.k) for one in found]
            kept = shared_prerank(asked.sorter, requests, found, settings.k) if asked._shared else by_head
        with timings.stage("merge"):
            alone = {
                head: merged_answers(requests, [one], [settings.k], asked.sorter, asked.catalogue)[0]
                for head, one in zip(asked.heads, by_head, strict=True)
            }
            merged = merged_answers(requests, kept, quotas, asked.sorter, asked.catalogue)[0]
        with timings.stage("describe"):
            shown = [asked.catalogue.ids(index)[0], *(answer.item for answers in alone.values() for answer in answers)]
            shown = list(dict.fromkeys(shown))
            described = dict(zip(shown, asked.describe(shown), strict=True))
        return SideBySide(shown[0], settings.alpha, alone, merged, described)

    def describe(self, ids: Sequence[ItemId]) -> list[ItemDescription]:
        """Display columns of items; empty ones for ids that the index does not know."""
        return self.catalogue.describe(self.catalogue.find(ids, "item"))

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

    def _prerank(
        self,
        heads: Sequence[str],
        requests: Requests,
        settings: RetrievalConfig,
        allowed: Mask | None,
        timings: Timings,
    ) -> list[Candidates]:
        """The ``settings.k`` best candidates of each trigger: under each head or, if shared, of all together."""
        with timings.stage("search"):
            found = self._searches.search_all(heads, requests.triggers, settings, allowed)
        with timings.stage("prerank"):
            if self._shared:
                return shared_prerank(self.sorter, requests, found, settings.k)
            return [prerank(self.preranker, requests, one, settings.k) for one in found]

    def _pooled(
        self, requests: Requests, kept: Sequence[Candidates], quotas: Sequence[int], timings: Timings
    ) -> UserList:
        ranker = self.sorter if self._shared else self.preranker
        with timings.stage("prerank"):
            rankings = [ranker.score(requests, one) for one in kept]
        with timings.stage("merge"):
            return user_list(requests, kept, rankings, quotas, self.sorter, shared=self._shared)

    @property
    def _shared(self) -> bool:
        """Whether the candidates of all heads are ranked as one."""
        return self.defaults.preranking == "shared"

    def _taking_part(self, quotas: Sequence[int]) -> tuple[list[str], list[int]]:
        """The heads with a share. A head without one is not asked: each of the others finds all that there is.

        A shared ranking is one of all heads, whatever their shares.
        """
        if self._shared:
            return list(self.heads), list(quotas)
        taking = [(head, quota) for head, quota in zip(self.heads, quotas, strict=True) if quota]
        return [head for head, _ in taking], [quota for _, quota in taking]

    def _knowing(self, triggers: Sequence[ItemId], features: Mapping[ItemId, Row], timings: Timings) -> Retriever:
        """A retriever for one request that knows the unknown triggers by their features; without any, this one.

        Raises:
            RequestError: features that do not fit.
            ValueError: there is no tower.
        """
        if not features:
            return self
        with timings.stage("embed"):
            return self._with_triggers(triggers, features)

    def _with_triggers(self, triggers: Sequence[ItemId], features: Mapping[ItemId, Row]) -> Retriever:
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
            threads=self._searches.threads,
            cores=self._searches.cores,
        )
