"""Over HTTP: triggers that the index knows by their features alone, and a share for every head."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from service_process import ServiceProcess

from mtmh.config import load_config
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever

NEW = 900_001


@pytest.fixture(scope="module")
def row(service: ServiceProcess) -> dict[str, Any]:
    known = dict.fromkeys(service.call("GET", "/v1/index").json["features"])
    return known | {"price": 12.5, "styles": ["style 1", None]}


@pytest.fixture(scope="module")
def retriever(served_recipe: Path) -> Retriever:
    return Retriever.load(load_config(served_recipe).model_dir("index"))


def items(answer: dict[str, Any]) -> list[int]:
    return [item["item"] for item in answer["items"]]


def test_an_unknown_trigger_is_answered_by_its_features(
    service: ServiceProcess, retriever: Retriever, row: dict[str, Any]
) -> None:
    assert service.retrieve(triggers=[NEW]).status == 404
    reply = service.retrieve(triggers=[17, NEW, str(NEW + 1)], k=8, features={str(NEW): row, str(NEW + 1): row})
    assert reply.status == 200, reply.body
    expected = retriever.retrieve(Query([17, NEW, NEW + 1], k=8, features={NEW: row, NEW + 1: row}))
    assert [items(answer) for answer in reply.json["answers"]] == [[item.item for item in them] for them in expected]
    assert [answer["trigger"] for answer in reply.json["answers"]] == [17, NEW, NEW + 1]
    assert service.retrieve(triggers=[NEW]).status == 404, "nothing of it is kept"


def test_so_are_a_history_and_the_heads_side_by_side(
    service: ServiceProcess, retriever: Retriever, row: dict[str, Any]
) -> None:
    by_user = service.retrieve(history=[17, NEW], k=9, features={str(NEW): row}).json["answers"][0]
    expected = retriever.retrieve_user(Query(history=[17, NEW], k=9, features={NEW: row}))
    assert items(by_user) == [item.item for item in expected]
    shown = service.retrieve(triggers=[NEW], k=6, side_by_side=True, features={str(NEW): row}).json["answers"][0]
    assert [len(of_head) for of_head in shown["heads"].values()] == [6, 6]
    assert items(shown) == [item.item for item in retriever.retrieve(Query([NEW], k=6, features={NEW: row}))[0]]


def test_every_head_gets_its_share(service: ServiceProcess) -> None:
    for shares, expected in (
        ({"engagement": 0.2, "relevance": 0.8}, {"engagement": 2, "relevance": 8}),
        ({"relevance": 1.0}, {"relevance": 10}),
    ):
        reply = service.retrieve(triggers=[17], k=10, shares=shares)
        assert reply.status == 200, reply.body
        assert reply.json["alpha"] is None
        assert Counter(item["head"] for item in reply.json["answers"][0]["items"]) == expected
    shown = service.retrieve(triggers=[17], k=10, shares={"engagement": 0.9, "relevance": 0.1}, side_by_side=True)
    assert Counter(item["head"] for item in shown.json["answers"][0]["items"]) == {"engagement": 9, "relevance": 1}


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"shares": {"engagement": 0.5}}, "shares that sum to 1, not to 0.5"),
        ({"shares": {"engagement": 1.5, "relevance": -0.5}}, "less than or equal to 1"),
        ({"shares": {"engagement": 1.0}, "alpha": 50}, "either alpha or shares"),
        ({"shares": {"novelty": 1.0}}, "no head novelty; the heads are engagement, relevance"),
        ({"features": {"4": {}}}, "4 is neither a trigger nor in the history"),
        ({"features": {}}, "at least 1"),
        ({"features": {str(NEW): {"price": 1.0}}}, "is missing"),
        ({"features": {str(NEW): {"price": {"is": "high"}}}}, "features"),
        ({"features": {str(NEW): {"price": "\ud800"}}}, "features"),
        ({"features": {str(NEW): {"price": True}}}, "features"),
    ],
)
def test_what_does_not_fit_is_refused(service: ServiceProcess, question: dict[str, Any], message: str) -> None:
    refused = service.retrieve(triggers=[17, NEW], **question)
    assert refused.status == 422, refused.body
    assert message in refused.json["detail"]


def test_the_features_of_a_request_are_limited(service: ServiceProcess) -> None:
    ids = [*range(NEW, NEW + 101)]
    refused = service.retrieve(history=ids, k_ann=30, features={str(item): {} for item in ids})
    assert refused.status == 422
    assert "body.features: at most 100 items, not 101" in refused.json["detail"]
    schema = service.call("GET", "/openapi.json").json["components"]["schemas"]["RetrieveRequest"]
    assert {choice.get("maxProperties") for choice in schema["properties"]["features"]["anyOf"]} == {100, None}
    assert any("features" in example for example in schema["examples"])
