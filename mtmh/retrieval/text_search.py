"""Finds items by the words of their text or by their id, for people: the explorer page and GET /v1/items."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MOST_WORDS = 8  # each is one pass over the texts

_MARKS = r"\p{Mn}"  # accents, once letters are taken apart


class ItemTexts:
    """The texts and ids of a catalogue, looked through without regard to case and accents.

    Args:
        items: columns item_id, text, train_count; row number = place in the answers.
    """

    def __init__(self, items: pa.Table) -> None:
        self._text = pc.fill_null(items.column("text").cast(pa.string()), "")
        self._ids = items.column("item_id")
        self._counts = items.column("train_count").to_numpy()

    def search(self, query: str, limit: int) -> npt.NDArray[np.int64]:
        """Rows of the items whose text holds every word of the query, or whose id begins with the query.

        Order: the item whose id it is, ids and texts that begin with the query, the others; within each the items with
        most training events first. An empty query gives the most popular items. One pass over the texts a word.

        Args:
            query: words, of which the caller allows ``MOST_WORDS``.
            limit: most rows to return.
        """
        words = folded(query).split()
        if not words:
            return np.argsort(-self._counts, kind="stable")[:limit]
        whole = " ".join(words)
        holds = np.ones(len(self._counts), bool)
        for word in words:
            holds &= self._matches(word, pc.match_substring)
        by_id = _mask(pc.starts_with(self._lowered_ids, query.strip().lower()))
        rows = np.flatnonzero(holds | by_id)
        is_named = _mask(pc.equal(self._lowered_ids, query.strip().lower()))[rows]
        begins = (self._matches(whole, pc.starts_with) | by_id)[rows]
        return rows[np.lexsort((-self._counts[rows], ~begins, ~is_named))[:limit]]

    def _matches(self, text: str, match: Callable[..., pa.ChunkedArray]) -> npt.NDArray[np.bool_]:
        """[I] of the texts as they are, and of those with letters beyond ASCII also without their accents."""
        found = _mask(match(self._text, text, ignore_case=True))
        rows, plain = self._plain
        found[rows] |= _mask(match(plain, text))
        return found

    @cached_property
    def _plain(self) -> tuple[npt.NDArray[np.int64], pa.Array]:
        """Rows of the texts with other letters than those of ASCII, and these texts folded."""
        rows = np.flatnonzero(~_mask(pc.string_is_ascii(self._text)))
        apart = pc.utf8_normalize(self._text.take(pa.array(rows)), "NFKD")
        return rows, pc.utf8_lower(pc.replace_substring_regex(apart, _MARKS, ""))

    @cached_property
    def _lowered_ids(self) -> pa.ChunkedArray:
        return pc.utf8_lower(self._ids.cast(pa.string()))


def folded(text: str) -> str:
    """Text in lower case and without accents."""
    apart = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in apart if unicodedata.category(letter) != "Mn").lower()


def _mask(hits: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    return np.array(pc.fill_null(hits, False).to_numpy(zero_copy_only=False))
