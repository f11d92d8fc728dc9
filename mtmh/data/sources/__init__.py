"""Adapters: one a source, from its files to the two tables of the data contract."""

from __future__ import annotations

from collections.abc import Callable

from mtmh.data.sources.amazon import amazon
from mtmh.data.sources.base import SourceContext, SourceTables
from mtmh.data.sources.complete_journey import complete_journey
from mtmh.data.sources.movielens import movielens
from mtmh.data.sources.online_retail import online_retail
from mtmh.data.sources.synthetic import synthetic
from mtmh.data.sources.tables import tables

SOURCES: dict[str, Callable[[SourceContext], SourceTables]] = {
    "synthetic": synthetic,
    "movielens": movielens,
    "complete-journey": complete_journey,
    "online-retail": online_retail,
    "amazon": amazon,
    "tables": tables,
}

__all__ = ["SOURCES", "SourceContext", "SourceTables"]
