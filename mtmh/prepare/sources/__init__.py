"""Adapters: one a source, from its files to the two tables of the data contract."""

from __future__ import annotations

from collections.abc import Callable

from mtmh.prepare.sources.amazon import amazon_tables
from mtmh.prepare.sources.base import SourceContext, SourceTables
from mtmh.prepare.sources.complete_journey import complete_journey_tables
from mtmh.prepare.sources.movielens import movielens_tables
from mtmh.prepare.sources.online_retail import online_retail_tables
from mtmh.prepare.sources.synthetic import synthetic_tables
from mtmh.prepare.sources.tables import own_tables

SOURCES: dict[str, Callable[[SourceContext], SourceTables]] = {
    "synthetic": synthetic_tables,
    "movielens": movielens_tables,
    "complete-journey": complete_journey_tables,
    "online-retail": online_retail_tables,
    "amazon": amazon_tables,
    "tables": own_tables,
}

__all__ = ["SOURCES", "SourceContext", "SourceTables"]
