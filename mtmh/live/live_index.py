"""The published index with what was added and removed since: durable on disk, one reference to swap in memory."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtmh.artifacts import open_artifact
from mtmh.config import MilvusConfig, RetrievalConfig
from mtmh.data.arrays import ItemId
from mtmh.data.schema import ITEM_ID
from mtmh.errors import RequestError
from mtmh.index.artifact import IndexSummary
from mtmh.index.versions import current_version
from mtmh.index.writers import writing
from mtmh.live.segments import Segment, check_present, last_change, read_segments, write_segment
from mtmh.retrieval.retriever import Retriever
from mtmh.tower.fresh import Tower
from mtmh.tower.item_features import CONTENT

if TYPE_CHECKING:  # transformers takes seconds to import
    from mtmh.content.fresh import FreshContent


@dataclass(frozen=True)
class _State:
    """The version in use, with its changes.

    Attributes:
        folder: of the version.
        change: number of the last change applied to it.
        retriever: answers.
    """

    folder: Path
    change: int
    retriever: Retriever


class LiveIndex:
    """An index that items are added to and removed from while it answers.

    A change is written first (``segments.py``) and then put in the place of the old state by one assignment: who reads
    ``retriever`` once a request sees one state throughout. Several threads may use one ``LiveIndex``, and several
    processes one folder; ``refresh`` shows the changes of the others.

    Args:
        index_dir: versioned folder of an index.
        settings: defaults of a request, under every version; None: those that the version was built with.
        milvus: ``index.milvus`` of the recipe; a version on another Milvus is refused.

    Raises:
        ValueError: nothing is published there, or a file is missing, truncated or altered.
    """

    def __init__(
        self, index_dir: Path, settings: RetrievalConfig | None = None, milvus: MilvusConfig | None = None
    ) -> None:
        self._index_dir = index_dir
        self._settings = settings
        self._milvus = milvus
        self._refreshing = threading.Lock()  # one after the other; it is taken before the next one
        self._changing = threading.Lock()
        self._state = _open(index_dir, current_version(index_dir), settings, milvus)

    @property
    def retriever(self) -> Retriever:
        """Answers requests; to be read once a request."""
        return self._state.retriever

    @property
    def folder(self) -> Path:
        """Of the version in use."""
        return self._state.folder

    @property
    def has_versions(self) -> bool:
        """True if changes have a place; an index artifact alone has none."""
        return self._state.folder != self._index_dir

    @property
    def change(self) -> int:
        """Number of the last change applied to it."""
        return self._state.change

    def refresh(self) -> bool:
        """Takes a newly published version, and changes of other processes, into use.

        Returns:
            Whether there is another retriever now.

        Raises:
            ValueError: the new version or a change is damaged; what was in use stays so.
        """
        with self._refreshing:
            before = self._state
            folder = current_version(self._index_dir)
            files = before.retriever.files
            if folder != before.folder or (files is not None and not files.are_whole):
                # Reading a whole index takes a while, so outside the lock: items come and go under the old version
                # meanwhile, and what came and went is applied to the new one before it takes over.
                opened = _open(self._index_dir, folder, self._settings, self._milvus)
                with self._changing:
                    self._state = _with_changes(opened, read_segments(self._index_dir, opened.change))
            elif last_change(self._index_dir) > before.change:
                with self._changing:
                    self._state = self._caught_up()
            return self._state is not before

    def add(
        self,
        rows: Sequence[Mapping[str, Any]],
        *,
        content: FreshContent | None = None,
        deadline: float = math.inf,
    ) -> list[ItemId]:
        """Adds fresh items: embedded from their features, on the disk, and answers from here on.

        An item that is there because an equal row was added before is left as it is, so that a caller who does not know
        whether an addition took place may repeat it.

        Args:
            rows: ``item_id``, every feature of the model (null: not known), and optionally ``text``, ``topic_l1``,
                ``topic_l2``, ``first_seen``, ``image``, and ``content_embedding`` where the tower takes one in.
            content: the teacher, for rows that bring no content embedding of their own.
            deadline: of ``time.monotonic()``; an addition that could not begin by then does not take place.

        Returns:
            Their ids.

        Raises:
            RequestError: a row does not fit, or an id is there already; nothing is added then.
            ValueError: the index has no versions or no tower, or a change of another process is damaged; likewise.
            TimeoutError: other changes were under way until after the deadline; nothing is added then.
        """
        with self._change(deadline) as state:
            if not len(rows):
                return []
            features = _tower(state).features
            content = content if features.facts.content_dim else None
            table = features.table(rows)
            ids: list[ItemId] = table.column(ITEM_ID).to_pylist()
            repeated = [item for item, count in Counter(ids).items() if count > 1]
            if repeated:
                raise RequestError(f"item {repeated[0]!r} comes more than once")
            present = state.retriever.catalogue.find_answerable(ids, "item") >= 0
            self._check_equal(table.filter(pa.array(present)), or_made=content is not None)
            table = table.filter(pa.array(~present))
            if content is not None:
                table = _with_content(table, content, features.facts.content_dim)
            if len(table):
                self._write(state, table, [])
            return ids

    def remove(self, ids: Sequence[ItemId], *, deadline: float = math.inf) -> None:
        """Removes items: they are in no answer from here on, whatever version is published, until they are added again.

        Args:
            ids: of the items.
            deadline: of ``time.monotonic()``; a removal that could not begin by then does not take place.

        Raises:
            UnknownItemError: an id is not in the index; nothing is removed then.
            RequestError: an id of the wrong type.
            ValueError: the index has no versions, or a change of another process is damaged.
            TimeoutError: other changes were under way until after the deadline; nothing is removed then.
        """
        with self._change(deadline) as state:
            catalogue = state.retriever.catalogue
            found = catalogue.find_answerable(ids, "item")
            if (found < 0).any():
                raise catalogue.unknown([ids[place] for place in np.flatnonzero(found < 0).tolist()], "item")
            if not len(ids):
                return
            typed = list(dict.fromkeys(catalogue.typed(item, "item") for item in ids))
            self._write(state, catalogue.columns(np.empty(0, np.int64), [ITEM_ID]), typed)

    @contextmanager
    def _change(self, deadline: float) -> Iterator[_State]:
        """Holds off other changes, of this process and others; gives the state that they left."""
        if not self.has_versions:
            raise ValueError(
                f"{self._index_dir}: holds one index without versions, so changes have no place;"
                " mtmh build-index without --out makes a folder of versions"
            )
        with self._changing, writing(self._index_dir):
            if time.monotonic() > deadline:
                raise TimeoutError("other changes of the index took until after the deadline; nothing was changed")
            check_present(self._index_dir, self._state.change)
            yield self._caught_up()

    def _write(self, state: _State, added: pa.Table, removed: list[ItemId]) -> None:
        """Writes one change and takes it into use."""
        segment = Segment(state.change + 1, state.change + 1, added, removed)
        # Applied before it is written: what cannot be embedded is not kept.
        changed = _with_changes(state, [segment])
        write_segment(self._index_dir, segment)
        self._state = changed

    def _check_equal(self, rows: pa.Table, *, or_made: bool) -> None:
        """Compares rows of items that are there with those by which they were added last.

        With ``or_made``, a row without a content embedding equals one with the embedding that the teacher made.
        """
        if not len(rows):
            return
        ids = rows.column(ITEM_ID).combine_chunks()
        added: dict[ItemId, dict[str, Any]] = {}
        for segment in read_segments(self._index_dir, 0):
            same = segment.added.filter(pc.is_in(segment.added.column(ITEM_ID), value_set=ids))
            added |= {row[ITEM_ID]: _known(row) for row in same.to_pylist()}
        for row in rows.to_pylist():
            before = added.get(row[ITEM_ID], {})
            if or_made and row.get(CONTENT) is None:
                before.pop(CONTENT, None)
            if before != _known(row):
                raise RequestError(f"item {row[ITEM_ID]!r} is in the index already; remove it first")

    def _caught_up(self) -> _State:
        """The version in use with the changes of other processes."""
        return _with_changes(self._state, read_segments(self._index_dir, self._state.change))


def _with_content(table: pa.Table, teacher: FreshContent, width: int) -> pa.Table:
    """The table with the teacher's embeddings of those rows that bring none and have something to look at."""
    field, given = table.schema.field(CONTENT), table.column(CONTENT).to_pylist()
    missing = [place for place, embedding in enumerate(given) if embedding is None]
    if not missing:
        return table
    if teacher.dim != width:
        raise ValueError(
            f"the recipe's teacher makes content embeddings of width {teacher.dim}, the published index takes {width}:"
            " it was built with another teacher"
        )
    for place, embedding in zip(missing, teacher(table.take(missing)), strict=True):
        given[place] = embedding.tolist() if embedding.any() else None
    return table.set_column(table.schema.get_field_index(CONTENT), field, pa.array(given, field.type))


def _open(index_dir: Path, folder: Path, settings: RetrievalConfig | None, milvus: MilvusConfig | None) -> _State:
    artifact = open_artifact(folder, "index")
    artifact.verify()
    through = IndexSummary.model_validate(artifact.summary).segments_through
    state = _State(folder, through, Retriever.load(folder, settings, milvus))
    if folder == index_dir:  # one index without versions: there is nowhere to write changes
        return state
    return _with_changes(state, read_segments(index_dir, through))


def _with_changes(state: _State, segments: Sequence[Segment]) -> _State:
    """The state after some changes."""
    retriever, change = state.retriever, state.change
    for segment in segments:
        present = retriever.catalogue.find_answerable(segment.removed, "removed item") >= 0
        if present.any():
            retriever = retriever.with_removed([segment.removed[place] for place in np.flatnonzero(present)])
        # Items that the index holds, because it was built from data that know them, keep its rows. So do those that
        # were removed and come back: what training made of an item is more than its features tell.
        ids = segment.added.column(ITEM_ID).to_pylist()
        new = retriever.catalogue.find_answerable(ids, "added item") < 0
        trained = retriever.catalogue.find_trained(ids)
        back = new & (trained >= 0)
        if back.any():
            retriever = retriever.with_returned(trained[back])
        rows = segment.added.filter(pa.array(new & ~back))
        if len(rows):
            vectors = _tower(state).embed(rows)
            for head, rows_of_head in vectors.items():
                if not np.isfinite(rows_of_head).all():
                    raise RequestError(f"head {head}: an embedding of the new items is not finite numbers")
            retriever = retriever.with_added(rows, vectors)
        change = segment.last
    if change == state.change:
        return state
    retriever = retriever.with_version(f"{state.folder.name}+{change}")
    return _State(state.folder, change, retriever)


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what is not known of it: merged changes may have more columns than each alone."""
    return {name: value for name, value in row.items() if value is not None}


def _tower(state: _State) -> Tower:
    tower = state.retriever.tower
    if tower is None:
        raise ValueError(f"{state.folder}: no tower, so features cannot be embedded; build the index again")
    return tower
