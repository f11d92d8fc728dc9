"""Finds items by the words of their text, for people: the explorer page and GET /v1/items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtmh.data.arrays import ItemId

MOST_WORDS = 8  # each is one pass over the texts


@dataclass(frozen=True)
class FoundItem:
    """An item with its display columns; an empty string where there is none.

    Attributes:
        item: its id.
        text: title or description.
        topic_l1: coarse topic.
        topic_l2: fine topic.
    """

    item: ItemId
    text: str
    topic_l1: str
    topic_l2: str


def search_items(items: pa.Table, query: str, limit: int) -> list[FoundItem]:
    """Items whose text holds every word of the query, upper and lower case alike; or whose id is the query.

    Order: the item whose id it is, texts that begin with the query, the others; within each the items with most
    training events first. An empty query gives the most popular items. One pass over the catalogue a word, no index.

    Args:
        items: columns item_id, text, topic_l1, topic_l2, train_count.
        query: words, of which the caller allows ``MOST_WORDS``.
        limit: most items to return.
    """
    words = query.split()
    text = items.column("text")
    named = pc.equal(items.column("item_id").cast(pa.string()), query.strip())
    found = pa.chunked_array([pa.repeat(True, len(items))]) if not words else None
    for word in words:
        has = pc.match_substring(text, word, ignore_case=True)
        found = has if found is None else pc.and_kleene(found, has)
    rows = np.flatnonzero(pc.fill_null(pc.or_kleene(found, named), False).to_numpy())
    counts = items.column("train_count").take(pa.array(rows)).to_numpy()
    if len(rows) > limit and not words:
        best = np.argsort(-counts, kind="stable")[:limit]
        return _described(items, rows[best])
    begins = np.zeros(len(rows), bool)
    if words:
        lowered = pc.utf8_lower(text.take(pa.array(rows)))
        begins = pc.fill_null(pc.starts_with(lowered, query.strip().lower()), False).to_numpy(zero_copy_only=False)
    is_named = pc.fill_null(named, False).to_numpy()[rows]
    order = np.lexsort((-counts, ~begins, ~is_named))[:limit]
    return _described(items, rows[order])


def _described(items: pa.Table, rows: np.typing.NDArray[np.int64]) -> list[FoundItem]:
    taken = items.select(["item_id", "text", "topic_l1", "topic_l2"]).take(pa.array(rows)).to_pylist()
    return [FoundItem(row["item_id"], *(row[name] or "" for name in ("text", "topic_l1", "topic_l2"))) for row in taken]
