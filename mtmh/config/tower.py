"""Settings of embedding the catalogue: what may be kept from the period before."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mtmh.config.base import Settings


class EmbeddingConfig(Settings):
    """Limits of what ``mtmh embed --delta-from`` takes for unchanged.

    ``watch_tables``: an item that reads a changed row of one of these is embedded anew; ``None``: of any table. A row
    that many items share changes with every period; with ``[item_id]`` such changes wait for the next full run.
    ``watch_floats``: so is an item whose float features changed, which standardised and popularity features do for
    nearly all items every period. ``max_drift``: the largest mean of 1 - cosine between kept embeddings and
    those that the new model would give, on a sample; above it nothing is written.
    """

    watch_tables: list[str] | None = None
    watch_floats: bool = False
    max_drift: Annotated[float, Field(ge=0.0, le=2.0)] = 0.02
