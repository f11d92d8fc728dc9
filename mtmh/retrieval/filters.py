"""Filters of a request: conditions on its answers, as one mask over the items that goes into the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mtmh.data.arrays import Indices, ItemId, Mask
from mtmh.retrieval.catalogue import Catalogue
from mtmh.retrieval.item_column import Condition


@dataclass(frozen=True)
class Filters:
    """Conditions that every answer meets; they combine by "and".

    The search itself goes past what is not allowed, so K answers come back whenever K allowed items exist.

    Attributes:
        exclude: ids that must not be answers; unknown ones are ignored, since lists of a product outlive its items.
        allow: ids that alone may be answers; unknown ones are ignored; None: all.
        exclude_seen: items of the user's history are no answers (a request of bare triggers has no history).
        min_first_seen: first event in the training period at this instant or later, in the unit of the events'
            timestamps; items without such an event count as the newest.
        topic_l1: coarse topics, one of which the item must have; None: any, or none.
        topic_l2: fine topics, likewise.
        where: column -> condition on any display or feature column: a value, a list of values of which one is enough,
            or ``{"min": 5, "max": 20}`` for numbers, both included. An item without a value does not meet it; of an
            item with several, one is enough.

    Example:
        >>> Filters(exclude=[99], where={"brand": ["acme", "umbra"], "price": {"max": 20}}).where["brand"]
        ['acme', 'umbra']
    """

    exclude: Sequence[ItemId] = ()
    allow: Sequence[ItemId] | None = None
    exclude_seen: bool = True
    min_first_seen: int | None = None
    topic_l1: Sequence[str] | None = None
    topic_l2: Sequence[str] | None = None
    where: Mapping[str, Condition] = field(default_factory=dict)

    def allowed(self, catalogue: Catalogue, history: Indices) -> Mask | None:
        """[I + F] which items may be answers; None: all.

        Args:
            catalogue: of the retriever.
            history: item indices of the user's history; empty without one.

        Raises:
            RequestError: an id of the wrong type, a column that is not there, or a condition that does not fit it.
        """
        masks = [] if catalogue.answerable is None else [catalogue.answerable]
        if self.allow is not None:
            mask = np.zeros(len(catalogue), bool)
            mask[_known(catalogue, self.allow, "allowed item", "filters.allow")] = True
            masks.append(mask)
        if self.min_first_seen is not None:
            masks.append(catalogue.seen_since(self.min_first_seen))
        masks += [catalogue.meeting(name, condition, where) for where, name, condition in self._conditions()]
        gone = _known(catalogue, self.exclude, "excluded item", "filters.exclude")
        if self.exclude_seen and len(history):
            gone = np.concatenate([gone, history])
        if not masks and not len(gone):
            return None
        allowed = np.logical_and.reduce(masks) if masks else np.ones(len(catalogue), bool)
        allowed[gone] = False
        return allowed

    def notes(self, catalogue: Catalogue) -> list[str]:
        """Conditions that no item of the catalogue meets, a line each; most of them are misspelt."""
        found = []
        for where, name, condition in self._conditions():
            if isinstance(condition, Mapping):
                if not catalogue.meeting(name, condition, where).any():
                    found.append(f"{where}: no item has a value in this range")
                continue
            found += catalogue.absent(name, condition, where)
        return found

    def _conditions(self) -> list[tuple[str, str, Condition]]:
        """Field, column and condition."""
        topics = {"topic_l1": self.topic_l1, "topic_l2": self.topic_l2}
        conditions = [(f"filters.{name}", name, wanted) for name, wanted in topics.items() if wanted is not None]
        return conditions + [(f"filters.where.{name}", name, wanted) for name, wanted in self.where.items()]


def _known(catalogue: Catalogue, ids: Sequence[ItemId], role: str, field: str) -> Indices:
    found = catalogue.find(ids, role, field)
    return found[found >= 0]
