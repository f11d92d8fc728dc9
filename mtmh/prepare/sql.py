"""Pieces of SQL that several statements are made of."""

from __future__ import annotations

from collections.abc import Iterable


def quoted(name: str) -> str:
    """A column name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string in SQL."""
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """Strings in SQL, with commas between them."""
    return ", ".join(map(literal, texts))


def reasons(*cases: tuple[str, str]) -> str:
    """SQL of ``drop_reason``: the name of the first (condition, name) that holds, else NULL."""
    if not cases:
        return "NULL::VARCHAR"
    return "CASE " + " ".join(f"WHEN {condition} THEN {literal(name)}" for condition, name in cases) + " END"


def floor_divided(expression: str, divisor: int) -> str:
    """Of integers, rounded down; DuckDB's own ``//`` rounds to 0."""
    return f"(({expression}) - {remainder(expression, divisor)}) // {divisor}"


def remainder(expression: str, divisor: int) -> str:
    """The remainder that `floor_divided` leaves, from 0 to ``divisor - 1``."""
    return f"((({expression}) % {divisor} + {divisor}) % {divisor})"
