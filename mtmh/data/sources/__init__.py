"""Adapters: one a source, from its files to the two tables of the data contract."""

from __future__ import annotations

from collections.abc import Callable

from mtmh.data.sources.base import SourceContext, SourceTables
from mtmh.data.sources.synthetic import synthetic

SOURCES: dict[str, Callable[[SourceContext], SourceTables]] = {
    "synthetic": synthetic,
}

__all__ = ["SOURCES", "SourceContext", "SourceTables"]
