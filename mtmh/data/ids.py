"""Ids as datasets keep them: their text, and the 64-bit numbers in their place where there is no vocabulary."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_BITS = 2**63 - 1
# What DuckDB's trim() takes off: all space separators of Unicode.
_SPACES = "".join(letter for letter in map(chr, range(0x3001)) if unicodedata.category(letter) == "Zs")


def clean_text(text: str) -> str | None:
    """An id or category without spaces around it, None for an empty one; as in a request or a row of a new item.

    Example:
        >>> clean_text(" b1  "), clean_text("  ")
        ('b1', None)
    """
    return text.strip(_SPACES) or None


def sql_clean_text(expression: str) -> str:
    """The same of a column of strings, as SQL."""
    return f"nullif(trim({expression}), '')"


def raw_ids(item_ids: Sequence[int] | Sequence[str] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The ids under which items are known to tables of raw ids.

    Integers are what they are. Strings are hashed: the first 63 bits of the MD5 of the text. So an item keeps its id
    over datasets, runs and machines. Among a billion strings, some two share one with a probability of about 5 %.

    Args:
        item_ids: integers or strings.

    Returns:
        [N] int64.
    """
    ids = np.asarray(item_ids)
    return ids.astype(np.int64) if ids.dtype.kind in "iu" else np.array([_hashed(str(text)) for text in ids], np.int64)


def sql_raw_id(column: str) -> str:
    """The same of a column of strings, as SQL; many times as fast."""
    return f"(('0x' || substr(md5({column}), 1, 16))::UBIGINT & {_BITS})::BIGINT"


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[:8], "big") & _BITS
