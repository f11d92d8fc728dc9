"""The retriever: search under every head, prerank each head's candidates, merge by quota (paper, section 3.5)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
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
from mtmh.errors import RequestError
from mtmh.index.artifact import PRERANKER, IndexSummary
from mtmh.index.files_in_use import FilesInUse
from mtmh.index.item_store import open_items
from mtmh.index.store import open_head
from mtmh.index.vector_index import ExactIndex, VectorIndex
from mtmh.index.versions import current_version
from mtmh.retrieval.adjustment import Adjustment, adjusted, boost_notes
from mtmh.retrieval.answers import (
    TOGETHER,
    AnswerRows,
    RetrievedItem,
    SideBySide,
    answer_rows,
    popular_answers,
    trigger_answers,
    user_answers,
)
from mtmh.retrieval.catalogue import Catalogue, ItemDescription
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.head_search import HeadSearch
from mtmh.retrieval.open_preranker import open_prerankers
from mtmh.retrieval.parallel_search import AllHeads
from mtmh.retrieval.query import Query, QueryPlan, fixed_probes
from mtmh.retrieval.ranking import (
    USER,
    Candidates,
    CoOccurrence,
    Extensible,
    Ranker,
    Requests,
    UserSource,
    keeps_order,
    prerank,
)
from mtmh.retrieval.timings import Timings
from mtmh.retrieval.user_list import UserList, by_score, distinct_latest_first, trigger_widths, user_list
from mtmh.retrieval.variety import Pool, Variety, choose, full_values, varied_list
from mtmh.signing import verify_signed
from mtmh.tower.artifact import TOWER
from mtmh.tower.fresh import Tower
from mtmh.tower.item_features import RawFeatures

logger = logging.getLogger(__name__)

_NOBODY = np.empty(0, np.int64)
_SEARCHES_AGAIN = 4  # of a head whose candidates the caps used up
_UNIT = 1e-2  # tolerance of a squared length, after halves
_MORE_KEPT = 4  # times as many candidates a trigger of a user, where caps and diversity choose among them


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
        self._searches = AllHeads({head: HeadSearch(index, stacked[head]) for head, index in indexes.items()})

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
        items = open_items(index_dir, summary.num_items)
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
        by_head = {head: HeadSearch(ExactIndex.build(stacked.base), stacked) for head, stacked in self.vectors.items()}
        return self._changed(self.catalogue, by_head)

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
        by_head = {
            head: search.with_added(vectors[head], listed=answerable) for head, search in self._searches.by_head.items()
        }
        changed = self._changed(self.catalogue.with_added(items, answerable=answerable), by_head)

        def extended(ranker: Ranker) -> Ranker:
            return ranker.with_added(items, vectors, changed.vectors) if isinstance(ranker, Extensible) else ranker

        changed.preranker = extended(self.preranker)
        changed.sorter = changed.preranker if self.sorter is self.preranker else extended(self.sorter)
        return changed

    def with_removed(self, ids: Sequence[ItemId]) -> Retriever:
        """A retriever that never answers with these items.

        Raises:
            UnknownItemError: an id is not in the index.
        """
        return self._changed(self.catalogue.with_removed(self.catalogue.indices(ids, "item")))

    def with_returned(self, indices: Indices) -> Retriever:
        """A retriever that answers with removed items of these indices again, as before they were removed."""
        return self._changed(self.catalogue.with_returned(indices))

    def with_version(self, version: str) -> Retriever:
        """This retriever under another version name."""
        changed = self._changed(self.catalogue)
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
            indices = knowing._triggers(query)
            known = indices >= 0
            allowed = knowing._allowed(query, _NOBODY)
        answers = iter(knowing._lists(query, indices[known], plan, allowed, timings))
        with timings.stage("describe"):
            popular = _NOBODY if known.all() else knowing._popular(query, plan, allowed)
            return [
                next(answers) if is_known else popular_answers(knowing.catalogue, popular, trigger)
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
            indices = distinct_latest_first(knowing.catalogue.find(query.ids, "item of the history", "history"))
            if not len(indices) and (query.unknown or self.defaults.unknown) == "error":
                raise self.catalogue.unknown(query.ids, "history:")
            allowed = knowing._allowed(query, indices)
        if not len(indices):
            with timings.stage("describe"):
                return popular_answers(knowing.catalogue, knowing._popular(query, plan, allowed), None)
        requests = Requests(indices, np.zeros(len(indices), np.int64), indices[None, :])
        kept_first = query.k_trigger or self.defaults.k
        if query.variety:  # which passes over many
            kept_first = min(plan.k_ann, _MORE_KEPT * kept_first)
        for kept in trigger_widths(kept_first, plan.k, len(indices)):
            found = knowing._pooled(requests, replace(plan, kept=kept), allowed, query.variety, timings)
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
            allowed = knowing._allowed(query, _NOBODY)

        requests = Requests.anonymous(index)
        found = knowing._found(query, self.heads, requests, plan, allowed, timings)

        def merged(candidates: Sequence[Candidates], quotas: Mapping[str, int]) -> list[RetrievedItem]:
            return knowing._merged(query, requests, candidates, quotas, timings)[0]

        alone = {candidates.head: merged([candidates], {candidates.head: plan.k}) for candidates in found}
        sharing = _taking_part(plan)
        merge = merged([candidates for candidates in found if candidates.head in sharing], plan.quotas)
        together = self._together(int(index[0]), knowing.catalogue.ids(index)[0], plan.k, allowed)
        with timings.stage("describe"):
            lists = [*alone.values(), merge, together or []]
            shown = [knowing.catalogue.ids(index)[0], *(answer.item for answers in lists for answer in answers)]
            shown = list(dict.fromkeys(shown))
            described = dict(zip(shown, knowing.describe(shown), strict=True))
        return SideBySide(shown[0], plan.alpha, alone, merge, together, described)

    def describe(self, ids: Sequence[ItemId]) -> list[ItemDescription]:
        """Display columns of items; empty ones for ids that the index does not know."""
        return self.catalogue.describe(self.catalogue.find(ids, "item"))

    def unknown(self, query: Query) -> list[ItemId]:
        """Items of a query that the index does not know and that come without features, each once."""
        typed = dict.fromkeys(self.catalogue.typed(item, "item") for item in query.ids)
        known = {self.catalogue.typed(item, "item") for item in (*query.features, *query.vectors)}
        places = self.catalogue.find(list(typed), "item")
        return [item for item, place in zip(typed, places.tolist(), strict=True) if place < 0 and item not in known]

    def notes(self, query: Query) -> list[str]:
        """What is to be said about a query beside its answers: conditions that nothing meets, unknown ids."""
        away = dict.fromkeys(self.catalogue.typed(item, "item") for item in query.away_from)
        places = self.catalogue.find(list(away), "item").tolist()
        gone = ", ".join(repr(item) for item, place in zip(away, places, strict=True) if place < 0)
        unmet = query.filters.notes(self.catalogue) + boost_notes(query.boosts, self.catalogue)
        return unmet + ([f"away_from: the index does not know {gone}"] if gone else [])

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
        in_order = keeps_order(self.preranker)
        if in_order:
            plan = replace(plan, k_ann=plan.kept)
        with timings.stage("search"):
            found = self._searches.search_all(heads, requests.triggers, plan, allowed)
        with timings.stage("prerank"):
            if in_order:
                return found
            return [prerank(self.preranker, requests, candidates, plan.kept) for candidates in found]

    def _lists(
        self, query: Query, triggers: Indices, plan: QueryPlan, allowed: Mask | None, timings: Timings
    ) -> list[list[RetrievedItem]]:
        """One list for each of [T] item indices."""
        lists = []
        for some in triggers[:, None] if query.variety else [triggers]:  # under caps or with diversity, one by one
            requests = Requests.anonymous(some)
            found = self._found(query, _taking_part(plan), requests, plan, allowed, timings)
            lists += self._merged(query, requests, found, plan.quotas, timings)
        return lists

    def _found(
        self,
        query: Query,
        heads: Sequence[str],
        requests: Requests,
        plan: QueryPlan,
        allowed: Mask | None,
        timings: Timings,
    ) -> list[Candidates]:
        """Candidates of each of the heads for lists: more where caps and diversity choose among them (T is 1 then)."""
        if query.variety:
            plan = replace(plan, kept=plan.k_ann)
        return self._supplied(heads, requests, plan, allowed, query.variety, timings)

    def _merged(
        self,
        query: Query,
        requests: Requests,
        found: Sequence[Candidates],
        quotas: Mapping[str, int],
        timings: Timings,
    ) -> list[list[RetrievedItem]]:
        """One list for each of the T triggers, out of what `_found` found for them."""
        if not query.variety:
            with timings.stage("merge"):
                return trigger_answers(requests, found, quotas, self.sorter, self.catalogue)
        rankings = [self.preranker.score(requests, candidates) for candidates in found]
        heads = [candidates.head for candidates in found]
        with timings.stage("merge"):
            chosen = varied_list(
                requests,
                found,
                rankings,
                [quotas[head] for head in heads],
                self.sorter,
                query.variety,
                self.catalogue,
                self._likeness,
            )
            return [user_answers(chosen, heads, self.catalogue)]

    def _supplied(
        self,
        heads: Sequence[str],
        requests: Requests,
        plan: QueryPlan,
        allowed: Mask | None,
        variety: Variety,
        timings: Timings,
    ) -> list[Candidates]:
        """As ``_keep``; where the caps of columns leave a head too few, it searches again among what they leave."""
        kept = self._keep(heads, requests, plan, allowed, timings)
        for place, candidates in enumerate(kept):
            for _ in range(_SEARCHES_AGAIN if variety.column_caps else 0):
                full = full_values(candidates, variety, self.catalogue, plan.k)
                if not any(full.values()):
                    break
                left = np.ones(len(self.catalogue), bool) if allowed is None else allowed.copy()
                left[candidates.items[candidates.items >= 0]] = False
                for name, values in full.items():
                    left &= ~self.catalogue.meeting(name, values, f"max_per.{name}")
                if not left.any():
                    break
                (more,) = self._keep([candidates.head], requests, plan, left, timings)
                candidates = candidates.beside(more)
            kept[place] = candidates
        return kept

    def _together(self, index: int, trigger: ItemId, k: int, allowed: Mask | None) -> list[RetrievedItem] | None:
        """The ``k`` items that go with one by plain co-occurrence; None: no ranker of the index has a table of it."""
        rankers = (self.sorter, self.preranker)
        table = next((ranker for ranker in rankers if isinstance(ranker, CoOccurrence)), None)
        if table is None:
            return None
        items, cosines = table.engaged_with(index)
        if allowed is not None:
            items, cosines = items[allowed[items]], cosines[allowed[items]]
        found = zip(self.catalogue.ids(items[:k]), cosines[:k].tolist(), strict=True)
        return [RetrievedItem(item, cosine, cosine, TOGETHER, trigger) for item, cosine in found]

    def _popular(self, query: Query, plan: QueryPlan, allowed: Mask | None) -> Indices:
        """What is answered where nothing is known; no item is a trigger of it, so no cap of triggers counts."""
        if not query.variety:
            return self.catalogue.popular(plan.k, allowed)
        items = self.catalogue.popular(plan.k_ann, allowed)
        variety = replace(query.variety, max_per=query.variety.column_caps)
        pool = Pool(items, self.catalogue.popularity(items).astype(np.float32), np.full(len(items), -1))
        chosen = choose([pool], [plan.k], variety, self.catalogue, self._likeness)
        return items[[place for _, place in chosen]]

    def _allowed(self, query: Query, history: Indices) -> Mask | None:
        """Which items may be answers; those to move away from may not."""
        filters = query.filters
        if len(query.away_from):
            filters = replace(filters, exclude=[*filters.exclude, *query.away_from])
        return filters.allowed(self.catalogue, history)

    @property
    def _likeness(self) -> ItemVectors:
        """Embeddings by which answers are alike: of the relevance head, where there is one."""
        return self.vectors.get("relevance", self.vectors[self.heads[0]])

    def _pooled(
        self, requests: Requests, plan: QueryPlan, allowed: Mask | None, variety: Variety, timings: Timings
    ) -> UserList:
        kept = self._supplied(_taking_part(plan), requests, plan, allowed, variety, timings)
        quotas = [plan.quotas[candidates.head] for candidates in kept]
        with timings.stage("prerank"):
            ranker, sorter = self.preranker, self.sorter
            if isinstance(sorter, UserSource):  # what speaks of the user chooses from the pools, too
                own, sorter = sorter.propose(requests, kept, (_MORE_KEPT if variety else 1) * plan.k, allowed)
                ranker = sorter
                if plan.of_user:
                    kept.append(own)
                    quotas.append(plan.of_user)
        with timings.stage("merge"):
            if variety:
                rankings = [ranker.score(requests, candidates) for candidates in kept]
                chosen = varied_list(requests, kept, rankings, quotas, sorter, variety, self.catalogue, self._likeness)
                return by_score(chosen)
            return user_list(requests, kept, ranker, quotas, sorter)

    def _knowing(self, query: Query, timings: Timings) -> Retriever:
        """A retriever for one request: it knows unknown triggers by their features, and its rankers go by the boosts.

        Raises:
            RequestError: features or boosts that do not fit.
            DamagedArtifactError: a file in use was cut off.
            ValueError: there is no tower.
        """
        if self.files is not None:
            self.files.check()
        knowing = self
        with timings.stage("embed"):
            if query.vectors:
                knowing = self._with_vectors(query.vectors)
            if query.features:
                knowing = knowing._with_triggers(query.ids, query.features)
            away = knowing.catalogue.find(query.away_from, "item", "away_from")
            away = away[away >= 0]
            if not query.boosts and not len(away):
                return knowing
            knowing = knowing._changed(knowing.catalogue)
            adjustment = Adjustment(knowing.catalogue, knowing._likeness, query.boosts, away)
            knowing.preranker = adjusted(knowing.preranker, adjustment)
            knowing.sorter = adjusted(knowing.sorter, adjustment)
            return knowing

    def _with_vectors(self, vectors: Mapping[ItemId, Mapping[str, Sequence[float]]]) -> Retriever:
        typed = {self.catalogue.typed(item, "trigger"): by_head for item, by_head in vectors.items()}
        places = self.catalogue.find(list(typed), "trigger").tolist()
        unknown = [item for item, place in zip(typed, places, strict=True) if place < 0]
        if not unknown:
            return self
        for item in unknown:
            if other := next((head for head in typed[item] if head not in self.heads), None):
                raise RequestError(f"expected the heads {', '.join(self.heads)}", f"vectors.{item}.{other}")
        stacked = {}
        for head in self.heads:
            width = self.vectors[head].shape[1]
            rows = [np.asarray(typed[item].get(head, ()), np.float32) for item in unknown]
            for item, row in zip(unknown, rows, strict=True):
                if row.shape != (width,) or not abs(float(row @ row) - 1.0) < _UNIT:
                    raise RequestError(f"expected {width} numbers of unit length", f"vectors.{item}.{head}")
            stacked[head] = np.stack(rows)
        return self.with_added(pa.table({"item_id": unknown}), stacked, answerable=False)

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

    def _triggers(self, query: Query) -> npt.NDArray[np.int64]:
        """Item indices; -1: unknown, where that is answered with popular items."""
        find = self.catalogue.indices if (query.unknown or self.defaults.unknown) == "error" else self.catalogue.find
        return find(query.ids, "trigger", "triggers")

    def _changed(self, catalogue: Catalogue, by_head: Mapping[str, HeadSearch] | None = None) -> Retriever:
        """This retriever with some of its parts replaced; searches of both share threads and cores."""
        changed = copy.copy(self)
        changed.catalogue = catalogue
        if by_head is not None:
            changed.vectors = {head: search.vectors for head, search in by_head.items()}
            changed._searches = AllHeads(by_head, self._searches.threads, self._searches.cores)
        return changed


def _taking_part(plan: QueryPlan) -> list[str]:
    """The heads with a share, and all where a share is the user's own, for which any head may find the best.

    Another head is not searched: each of those with a share finds all that there is.
    """
    return [head for head, quota in plan.quotas.items() if quota or plan.of_user]
