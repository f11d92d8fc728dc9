"""A front of several services, each of which holds a share of the items of one model: a trial, not a part of mtmh.

The front keeps the trigger's vectors (the embeddings of all items, mapped: two rows a trigger are read), asks every
service for the best of each head among its share, and merges what comes by similarity and quota, as one service of all
items does. Heads rank by similarity (``retrieval.preranker`` and ``sorter`` are ``head-score``).
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import numpy as np

from mtmh.retrieval.merge import head_quotas, head_shares, quota_merge

ItemId = int | str


class Front:
    """Asks services together.

    Args:
        urls: of the services.
        timeout: seconds that one may take.
    """

    def __init__(self, urls: Sequence[str], timeout: float = 20.0) -> None:
        self._urls = list(urls)
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(len(self._urls), "front")

    def retrieve(
        self, trigger: ItemId, vectors: Mapping[str, Sequence[float]], *, k: int, alpha: float, **more: Any
    ) -> list[dict[str, Any]]:
        """Answers one trigger with ``k`` items of all shares.

        Args:
            trigger: id; one of the services knows it.
            vectors: head -> unit vector [D] of the trigger.
            k: answers.
            alpha: percent from the engagement head.
            more: fields of the request (``num_probes``, ``filters``).

        Returns:
            as a service's ``items``.
        """
        question = {"triggers": [trigger], "vectors": {str(trigger): vectors}, "k": k, "side_by_side": True, **more}
        body = json.dumps(question).encode()
        answers = list(self._threads.map(lambda url: self._ask(url, body), self._urls))
        by_head = {}
        for head in answers[0]:
            found = [item for answer in answers for item in answer[head]]
            by_head[head] = sorted(found, key=lambda item: -float(item["similarity"]))[:k]
        places = {item["item"]: place for place, item in enumerate(chain.from_iterable(by_head.values()))}
        numbers = [np.array([[places[item["item"]] for item in found]]) for found in by_head.values()]
        merged = quota_merge(numbers, head_quotas(head_shares(alpha, len(by_head)), k))
        ids, lists = {place: item for item, place in places.items()}, list(by_head.values())
        chosen = zip(merged.items[0].tolist(), merged.heads[0].tolist(), strict=True)
        return [
            next(item for item in lists[head] if item["item"] == ids[place]) for place, head in chosen if place >= 0
        ]

    def _ask(self, url: str, body: bytes) -> dict[str, list[dict[str, Any]]]:
        request = urllib.request.Request(f"{url}/v1/retrieve", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self._timeout) as answer:
            heads: dict[str, list[dict[str, Any]]] = json.load(answer)["answers"][0]["heads"]
        return heads
