"""Text of ids and categories as datasets keep it: without spaces around it, and none in place of an empty one."""

from __future__ import annotations

import unicodedata

# What DuckDB's trim() takes off: all space separators of Unicode.
_SPACES = "".join(letter for letter in map(chr, range(0x3001)) if unicodedata.category(letter) == "Zs")


def clean_text(text: str) -> str | None:
    """One value, as in a request or a row of a new item.

    Example:
        >>> clean_text(" b1  "), clean_text("  ")
        ('b1', None)
    """
    return text.strip(_SPACES) or None


def sql_clean_text(expression: str) -> str:
    """The same of a column of strings, as SQL."""
    return f"nullif(trim({expression}), '')"
