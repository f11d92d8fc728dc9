"""Filters of a request: conditions on its answers, as one mask over the items that goes into the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtmh.data.arrays import Indices, ItemId, Mask
from mtmh.retrieval.catalogue import Catalogue


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
    """

    exclude: Sequence[ItemId] = ()
    allow: Sequence[ItemId] | None = None
    exclude_seen: bool = True
    min_first_seen: int | None = None
    topic_l1: Sequence[str] | None = None
    topic_l2: Sequence[str] | None = None

    def allowed(self, catalogue: Catalogue, history: Indices) -> Mask | None:
        """[I + F] which items may be answers; None: all.

        Args:
            catalogue: of the retriever.
            history: item indices of the user's history; empty without one.

        Raises:
            ValueError: an id of the wrong type.
        """
        masks = [] if catalogue.answerable is None else [catalogue.answerable]
        if self.allow is not None:
            mask = np.zeros(len(catalogue), bool)
            mask[_known(catalogue, self.allow, "allowed item")] = True
            masks.append(mask)
        if self.min_first_seen is not None:
            masks.append(catalogue.seen_since(self.min_first_seen))
        for level, topics in (("topic_l1", self.topic_l1), ("topic_l2", self.topic_l2)):
            if topics is not None:
                masks.append(catalogue.with_topic(level, [topics] if isinstance(topics, str) else topics))
        gone = _known(catalogue, self.exclude, "excluded item")
        if self.exclude_seen and len(history):
            gone = np.concatenate([gone, history])
        if not masks and not len(gone):
            return None
        allowed = np.logical_and.reduce(masks) if masks else np.ones(len(catalogue), bool)
        allowed[gone] = False
        return allowed


def _known(catalogue: Catalogue, ids: Sequence[ItemId], role: str) -> Indices:
    found = catalogue.find(ids, role)
    return found[found >= 0]
