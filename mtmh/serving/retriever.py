"""The retriever: search under every head, prerank each head's candidates, merge by quota (paper, section 3.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.markup import escape
from rich.table import Table

from mtmh.artifacts import open_artifact
from mtmh.config import Config, RetrievalConfig
from mtmh.index.item_vectors import ItemVectors
from mtmh.index.layout import ITEMS, IndexSummary
from mtmh.index.store import open_head
from mtmh.index.vector_index import ExactIndex, VectorIndex
from mtmh.index.versions import current_version
from mtmh.serving.merge import Merged, head_quotas, head_shares, quota_merge
from mtmh.serving.preranker import Candidates, HeadScorePreranker, Preranker, Requests, prerank

ItemId = int | str
Indices = npt.NDArray[np.integer[Any]]

_SEARCH_TRIGGERS = 4096  # searched at a time: bounds memory at large k_ann


@dataclass(frozen=True)
class RetrievedItem:
    """One answer.

    Attributes:
        item: its id.
        score: comparable over all triggers and heads of a request: the similarity to the trigger under the engagement
            head, unless the retriever has another sorter.
        similarity: to the trigger, under the head that brought it.
        head: the head that brought it.
        trigger: the id of the trigger it answers.
    """

    item: ItemId
    score: float
    similarity: float
    head: str
    trigger: ItemId


@dataclass(frozen=True)
class SideBySide:
    """What each head alone and the merge answer to one trigger, with the columns that a person wants to see."""

    trigger: ItemId
    alpha: float
    heads: dict[str, list[RetrievedItem]]
    merged: list[RetrievedItem]
    descriptions: dict[ItemId, ItemDescription]


@dataclass(frozen=True)
class ItemDescription:
    """Display columns of an item; an empty string where there is none."""

    text: str
    topic_l1: str
    topic_l2: str


class Catalogue:
    """Ids and display columns of the items.

    Args:
        items: table with the columns of ``items.parquet`` of the index; row number = item index.
    """

    def __init__(self, items: pa.Table) -> None:
        self._items = items
        self.id_type = "int64" if pa.types.is_integer(items.schema.field("item_id").type) else "string"

    def __len__(self) -> int:
        return int(self._items.num_rows)

    def indices(self, ids: Sequence[ItemId], role: str) -> npt.NDArray[np.int64]:
        """Item indices of ids; digits in a string are an id of an int64 catalogue.

        Args:
            ids: item ids.
            role: what they are, for the message.

        Raises:
            ValueError: an id is not in the catalogue; the message names it.
        """
        column = self._items.column("item_id")
        try:
            wanted = pa.array([self._id(item) for item in ids], column.type)
        except (ValueError, OverflowError, pa.ArrowException):
            raise ValueError(f"{role} {list(ids)}: item ids of this index are of type {self.id_type}") from None
        found = pc.index_in(wanted, value_set=column)
        if found.null_count:
            unknown = [item for item, known in zip(ids, found.is_valid().to_pylist(), strict=True) if not known]
            shown = ", ".join(repr(item) for item in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            raise ValueError(f"unknown {role} {shown}: not among the {len(self)} items of this index")
        return np.asarray(found.to_numpy(), dtype=np.int64)

    def ids(self, indices: Indices) -> list[ItemId]:
        """Ids of item indices."""
        taken: list[ItemId] = self._items.column("item_id").take(pa.array(indices)).to_pylist()
        return taken

    def describe(self, indices: Indices) -> list[ItemDescription]:
        """Display columns of item indices."""
        rows = self._items.select(["text", "topic_l1", "topic_l2"]).take(pa.array(indices)).to_pylist()
        return [ItemDescription(**{name: value or "" for name, value in row.items()}) for row in rows]

    def _id(self, item: ItemId) -> ItemId:
        return int(item) if self.id_type == "int64" else str(item)


class Retriever:
    """Answers triggers with items.

    Safe to use from several threads: a request changes nothing in it.

    Attributes:
        heads: names, the engagement head first.
        catalogue: ids and display columns.
        vectors: head -> [I, D] float32 unit-length embeddings.
        defaults: of a request.
        preranker: ranks each head's candidates.
        sorter: scores the answers of all heads.
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
    ) -> None:
        self.heads = list(indexes)
        self.vectors = vectors
        self.catalogue = catalogue
        self.defaults = defaults
        self.preranker = preranker
        self.sorter = sorter
        self._indexes = indexes

    @classmethod
    def load(cls, index_dir: Path) -> Self:
        """Opens the published version of an index folder, or an index artifact; embeddings are memory-mapped.

        Raises:
            ValueError: no index artifact, or files that do not belong together; the message names the file.
        """
        index_dir = current_version(index_dir)
        artifact = open_artifact(index_dir, "index")
        summary = IndexSummary.model_validate(artifact.summary)
        opened = {head: open_head(index_dir, head, summary) for head in summary.heads}
        indexes = {head: index for head, (index, _) in opened.items()}
        vectors = {head: stored for head, (_, stored) in opened.items()}
        catalogue = Catalogue(pq.read_table(index_dir / ITEMS))
        if len(catalogue) != summary.num_items:
            raise ValueError(f"{index_dir / ITEMS}: {len(catalogue)} items, the manifest says {summary.num_items}")
        return cls(
            indexes,
            vectors,
            catalogue,
            Config.model_validate(artifact.manifest.config).retrieval,
            preranker=HeadScorePreranker(),
            sorter=HeadScorePreranker((summary.heads[0], vectors[summary.heads[0]])),
        )

    def exact(self) -> Retriever:
        """The same retriever over exact search: what is left of a difference to it is the index's loss."""
        indexes = {head: ExactIndex.build(self.vectors[head]) for head in self.heads}
        return Retriever(
            indexes, self.vectors, self.catalogue, self.defaults, preranker=self.preranker, sorter=self.sorter
        )

    def retrieve(
        self,
        triggers: Sequence[ItemId],
        *,
        k: int | None = None,
        k_ann: int | None = None,
        num_probes: int | None = None,
        alpha: float | None = None,
        exclude: Sequence[ItemId] = (),
    ) -> list[list[RetrievedItem]]:
        """Answers each trigger with ``k`` items (fewer only where the searched clusters hold fewer).

        Args:
            triggers: item ids.
            k: answers a trigger.
            k_ann: candidates a head; may exceed the catalogue.
            num_probes: clusters searched a head.
            alpha: percent of the answers from the engagement head.
            exclude: item ids that must not be in an answer; a trigger is never in its own.

        Returns:
            one list a trigger, grouped by head, each head's in its own order.

        Raises:
            ValueError: an unknown id, or a setting out of range.
        """
        settings = self._settings(k, k_ann, num_probes, alpha)
        trigger_indices = self.catalogue.indices(triggers, "trigger")
        excluded = self.catalogue.indices(exclude, "excluded item")
        requests = Requests.anonymous(trigger_indices)
        kept = [
            prerank(
                self.preranker,
                requests,
                self.search(head, trigger_indices, settings.k_ann, settings.num_probes, excluded),
                settings.k,
            )
            for head in self.heads
        ]
        return self._answers(requests, kept, settings.alpha, settings.k)

    def retrieve_side_by_side(
        self,
        trigger: ItemId,
        *,
        k: int | None = None,
        k_ann: int | None = None,
        num_probes: int | None = None,
        alpha: float | None = None,
    ) -> SideBySide:
        """What each head alone and the merge answer to one trigger; arguments as ``retrieve``."""
        settings = self._settings(k, k_ann, num_probes, alpha)
        index = self.catalogue.indices([trigger], "trigger")
        requests = Requests.anonymous(index)
        kept = [
            prerank(self.preranker, requests, self.search(head, index, settings.k_ann, settings.num_probes), settings.k)
            for head in self.heads
        ]
        alone = {one.head: self._answers(requests, [one], 100.0, settings.k)[0] for one in kept}
        merged = self._answers(requests, kept, settings.alpha, settings.k)[0]
        shown = [self.catalogue.ids(index)[0], *(answer.item for answers in alone.values() for answer in answers)]
        shown = list(dict.fromkeys(shown))
        described = self.catalogue.describe(self.catalogue.indices(shown, "item"))
        return SideBySide(shown[0], settings.alpha, alone, merged, dict(zip(shown, described, strict=True)))

    def search(
        self, head: str, triggers: Indices, k_ann: int, num_probes: int, exclude: Indices | None = None
    ) -> Candidates:
        """Nearest items of triggers under one head; neither the trigger itself nor excluded items are among them.

        Args:
            head: its name.
            triggers: [T] item indices.
            k_ann: candidates a trigger.
            num_probes: clusters searched.
            exclude: item indices.

        Returns:
            [T, k_ann] candidates, best first, missing ones at the end.
        """
        banned = np.unique(exclude) if exclude is not None else np.empty(0, np.int64)
        # Fetched on top of k_ann, so that k_ann remain.
        fetched = min(k_ann + 1 + len(banned), len(self.catalogue))
        parts = [
            self._search_block(head, triggers[start : start + _SEARCH_TRIGGERS], k_ann, fetched, num_probes, banned)
            for start in range(0, max(len(triggers), 1), _SEARCH_TRIGGERS)
        ]
        return Candidates(
            head, np.concatenate([items for items, _ in parts]), np.concatenate([scores for _, scores in parts])
        )

    def _search_block(
        self, head: str, triggers: Indices, k_ann: int, fetched: int, num_probes: int, banned: Indices
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        found_scores, found = self._indexes[head].search(self.vectors[head][triggers], fetched, num_probes)
        wanted = (found >= 0) & (found != triggers[:, None])
        if len(banned):
            wanted &= ~np.isin(found, banned)
        slots = np.cumsum(wanted, axis=1) - 1
        rows, columns = np.nonzero(wanted & (slots < k_ann))
        slots = slots[rows, columns]
        items = np.full((len(triggers), k_ann), -1, np.int32)
        scores = np.full((len(triggers), k_ann), -np.inf, np.float32)
        items[rows, slots] = found[rows, columns]
        scores[rows, slots] = found_scores[rows, columns]
        return items, scores

    def _settings(
        self, k: int | None, k_ann: int | None, num_probes: int | None, alpha: float | None
    ) -> RetrievalConfig:
        k = k if k is not None else self.defaults.k
        # A larger K than the default asks for at least as many candidates.
        k_ann = k_ann if k_ann is not None else max(self.defaults.k_ann, k)
        num_probes = num_probes if num_probes is not None else self.defaults.num_probes
        alpha = alpha if alpha is not None else self.defaults.alpha
        for name, value in (("k", k), ("k_ann", k_ann), ("num_probes", num_probes)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if k > k_ann:
            raise ValueError(f"k is {k}, more than the {k_ann} candidates of a head (k_ann)")
        if not 0.0 <= alpha <= 100.0:
            raise ValueError(f"alpha is {alpha}, expected a percentage from 0 to 100")
        return RetrievalConfig(k=k, k_ann=k_ann, num_probes=num_probes, alpha=alpha)

    def _answers(
        self, requests: Requests, kept: Sequence[Candidates], alpha: float, k: int
    ) -> list[list[RetrievedItem]]:
        merged = merge_heads(kept, alpha, k)
        scores = merged.take([self.sorter.score(requests, one) for one in kept])
        similarities = merged.take([one.scores for one in kept])
        rows, slots = np.nonzero(merged.items >= 0)
        trigger_ids = self.catalogue.ids(requests.triggers)
        answers: list[list[RetrievedItem]] = [[] for _ in trigger_ids]
        for row, item, score, similarity, head in zip(
            rows.tolist(),
            self.catalogue.ids(merged.items[rows, slots]),
            scores[rows, slots].tolist(),
            similarities[rows, slots].tolist(),
            merged.heads[rows, slots].tolist(),
            strict=True,
        ):
            answers[row].append(RetrievedItem(item, score, similarity, kept[head].head, trigger_ids[row]))
        return answers


def merge_heads(kept: Sequence[Candidates], alpha: float, k: int) -> Merged:
    """Quota merge of the preranked candidates of all heads, ``alpha`` percent from the first."""
    return quota_merge([one.items for one in kept], head_quotas(head_shares(alpha, len(kept)), k))


def retrieval_table(side_by_side: SideBySide) -> Table:
    """The answers of every head and of the merge as columns of one table for the terminal."""
    shown = side_by_side.descriptions
    trigger = shown[side_by_side.trigger]
    title = escape(f"Trigger {side_by_side.trigger}: {_describe(trigger)}")
    table = Table(title=title, title_justify="left", show_lines=False)
    table.add_column("#", justify="right", style="dim")
    for head in side_by_side.heads:
        table.add_column(f"{head} head")
    many = len(side_by_side.heads) > 1
    if many:
        table.add_column(f"merged, alpha = {side_by_side.alpha:g}")
    columns = [*side_by_side.heads.values(), *([side_by_side.merged] if many else [])]
    for place in range(max(map(len, columns), default=0)):
        cells = []
        for column, answers in enumerate(columns):
            if place >= len(answers):
                cells.append("")
                continue
            answer = answers[place]
            same = shown[answer.item].topic_l2 == trigger.topic_l2 != ""
            brought = f" [cyan]{answer.head[:1].upper()}[/cyan]" if column == len(side_by_side.heads) else ""
            text = escape(f"{answer.item} {_describe(shown[answer.item])}")
            cells.append(
                f"[dim]{answer.similarity:.2f}[/dim]{brought} {'[green]' + text + '[/green]' if same else text}"
            )
        table.add_row(str(place + 1), *cells)
    initials = ", ".join(f"{head[:1].upper()} = {head} head" for head in side_by_side.heads) if many else ""
    table.caption = "similarity under the head that brought it; green: the trigger's own fine topic" + (
        f"; {initials}" if initials else ""
    )
    return table


def _describe(item: ItemDescription) -> str:
    text = item.text if len(item.text) <= 40 else item.text[:39] + "…"
    topics = " / ".join(dict.fromkeys(filter(None, (item.topic_l1, item.topic_l2))))
    return f"{text} ({topics})" if topics else text
