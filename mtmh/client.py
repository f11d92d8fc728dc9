"""A client of the HTTP service, typed: items that go with an item, or with what a user engaged with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, Unpack

import httpx2

ItemId = int | str


class ServiceError(Exception):
    """The service refused a request, in its own words.

    Attributes:
        status: of HTTP: 404 an unknown item, 422 a field that does not fit, 429 and 503 to be tried again.
        fields: of the request that do not fit, and what was expected.
    """

    def __init__(self, status: int, detail: str, fields: Mapping[str, str]) -> None:
        super().__init__(detail)
        self.status = status
        self.fields = dict(fields)


@dataclass(frozen=True)
class Found:
    """One answer.

    Attributes:
        item: its id.
        head: that brought it.
        score: the list is sorted by it within a head; comparable within the request.
        similarity: to the trigger; None: a popular item.
        trigger: that it answers; None: nothing of the history was known.
        text: for people.
        topic_l1: coarse topic.
        topic_l2: fine topic.
        image: address of its picture.
    """

    item: ItemId
    head: str
    score: float
    similarity: float | None
    trigger: ItemId | None
    text: str
    topic_l1: str
    topic_l2: str
    image: str = ""


@dataclass(frozen=True)
class FoundList:
    """A list of answers.

    Attributes:
        items: the answers.
        ignored: items of the history that the service does not know.
        version: of the index that answered.
        notes: what the service says beside the answers: conditions that no item meets, unknown ids.
    """

    items: list[Found]
    ignored: list[ItemId]
    version: str
    notes: list[str] = field(default_factory=list)


class RequestFields(TypedDict, total=False):
    """Further fields of a request, as the page of the service's API (/docs) tells them."""

    k_ann: int
    num_probes: int
    shares: Mapping[str, float]
    features: Mapping[str, Mapping[str, Any]]
    vectors: Mapping[str, Mapping[str, Sequence[float]]]
    filters: Mapping[str, Any]
    max_per: Mapping[str, int]
    diversity: float
    boosts: Mapping[str, Mapping[str, float]]
    away_from: Sequence[ItemId]
    unknown: Literal["error", "popular"]
    timeout_ms: int


class Client:
    """A connection to a service; may be shared by threads, and closes with its ``with`` block.

    Args:
        url: of the service, ``http://127.0.0.1:8080``.
        timeout: seconds that a request may take.

    Example:
        >>> with Client("http://127.0.0.1:8080") as client:  # doctest: +SKIP
        ...     [found.item for found in client.similar_items(17, k=10, alpha=50).items]
    """

    def __init__(self, url: str, *, timeout: float = 5.0) -> None:
        self._http = httpx2.Client(base_url=url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()

    def similar_items(
        self, item: ItemId, *, k: int | None = None, alpha: float | None = None, **more: Unpack[RequestFields]
    ) -> FoundList:
        """Items that go with an item.

        Args:
            item: its id.
            k: answers; None: as many as the service gives by default.
            alpha: percent from the engagement head; None: likewise.
            more: other fields of the request, such as ``filters={"where": {"price": {"max": 20}}}``.

        Raises:
            ServiceError: an unknown item, or a field that does not fit.
            httpx2.TransportError: no service there, or it does not answer in time.
        """
        return self._retrieve({"triggers": [item], "k": k, "alpha": alpha, **more})

    def recommend(
        self,
        history: Sequence[ItemId],
        *,
        k: int | None = None,
        alpha: float | None = None,
        **more: Unpack[RequestFields],
    ) -> FoundList:
        """Items for a user, by what the user engaged with, the latest last; arguments and errors as `similar_items`."""
        return self._retrieve({"history": list(history), "k": k, "alpha": alpha, **more})

    def find(self, words: str, limit: int = 10) -> list[dict[str, Any]]:
        """Items whose text holds all words, or that have this id; errors as `similar_items`."""
        items: list[dict[str, Any]] = self._read("GET", "/v1/items", params={"query": words, "limit": limit})["items"]
        return items

    def index(self) -> dict[str, Any]:
        """The index that answers: version, heads, defaults and limits; errors as `similar_items`."""
        return self._read("GET", "/v1/index")

    def _retrieve(self, fields: Mapping[str, Any]) -> FoundList:
        body = {name: value for name, value in fields.items() if value is not None}
        answer = self._read("POST", "/v1/retrieve", json={**body, "describe": True})
        described = {text.pop("item"): text for text in answer["descriptions"]}
        (found,) = answer["answers"]
        items = [Found(**item, **described[item["item"]]) for item in found["items"]]
        return FoundList(items, found.get("ignored") or [], answer["version"], answer["notes"])

    def _read(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self._http.request(method, path, **options)
        if answer.is_success:
            content: dict[str, Any] = answer.json()
            return content
        if not answer.headers.get("Content-Type", "").startswith("application/problem+json"):
            raise ServiceError(answer.status_code, f"{path}: status {answer.status_code}, not from mtmh serve", {})
        problem = answer.json()
        fields = {field["field"]: field["expected"] for field in problem.get("fields", [])}
        raise ServiceError(answer.status_code, problem["detail"], fields)
