"""Over HTTP: conditions on columns, caps, diversity, boosts, items to move away from, and what is said beside them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_process import ServiceProcess

from mtmh.client import Client, ServiceError
from mtmh.config import load_config
from mtmh.retrieval.filters import Filters
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever

HISTORY = [17, 4, 23]


@pytest.fixture(scope="module")
def retriever(served_recipe: Path) -> Retriever:
    return Retriever.load(load_config(served_recipe).model_dir("index"))


def column(retriever: Retriever, name: str, items: list[int]) -> list[Any]:
    indices = retriever.catalogue.indices(items, "item")
    return retriever.catalogue.columns(indices, [name]).column(name).to_pylist()


def items(answer: dict[str, Any]) -> list[int]:
    return [item["item"] for item in answer["items"]]


def test_conditions_on_features_of_the_items(service: ServiceProcess, retriever: Retriever) -> None:
    columns = service.call("GET", "/v1/index").json["columns"]
    assert {"item_id", "text", "topic_l1", "train_count", "creator", "styles", "price"} <= set(columns)
    some = list(range(1, 60))
    styles = sorted({style for several in column(retriever, "styles", some) for style in several or ()})[:4]
    low, high = np.quantile([price for price in column(retriever, "price", some) if price is not None], [0.1, 0.9])
    where = {"price": {"min": low, "max": high}, "styles": styles}
    answer = service.retrieve(triggers=[17], k=12, filters={"where": where}).json["answers"][0]
    assert len(items(answer)) == 12
    assert all(low <= price <= high for price in column(retriever, "price", items(answer)))
    assert all(set(found) & set(styles) for found in column(retriever, "styles", items(answer)))
    creator = column(retriever, "creator", items(answer))[0][0]
    one = service.retrieve(triggers=[17], k=12, filters={"where": {"creator": creator}}).json["answers"][0]
    assert {name for names in column(retriever, "creator", items(one)) for name in names} == {creator}


def test_answers_are_those_of_the_library(service: ServiceProcess, retriever: Retriever) -> None:
    shape = {
        "max_per": {"topic_l2": 2},
        "diversity": 0.3,
        "boosts": {"topic_l1": {"topic 1": 1.5}, "item_id": {"12": 0.5}},
        "away_from": [5],
    }
    found = service.retrieve(triggers=[17, 4], k=9, **shape).json["answers"]
    shape["boosts"] = {"topic_l1": {"topic 1": 1.5}, "item_id": {12: 0.5}}
    expected = retriever.retrieve(Query([17, 4], k=9, **shape))
    assert [items(answer) for answer in found] == [[answer.item for answer in answers] for answers in expected]
    by_user = service.retrieve(history=HISTORY, k=9, **shape).json["answers"][0]
    assert items(by_user) == [answer.item for answer in retriever.retrieve_user(Query(history=HISTORY, k=9, **shape))]
    assert max(Counter(column(retriever, "topic_l2", items(by_user))).values()) <= 2


def test_no_trigger_fills_the_list_of_a_user(service: ServiceProcess) -> None:
    answer = service.retrieve(history=HISTORY, k=12, max_per={"trigger": 4}).json["answers"][0]
    assert Counter(item["trigger"] for item in answer["items"]) == dict.fromkeys(HISTORY, 4)
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    shown = service.retrieve(triggers=[17], k=6, side_by_side=True, max_per={"topic_l2": 1}).json["answers"][0]
    assert [len(items({"items": answers})) for answers in shown["heads"].values()] == [6, 6]


def test_an_unknown_trigger_is_an_error_unless_the_request_says_otherwise(service: ServiceProcess) -> None:
    assert service.retrieve(triggers=[17, 999_999]).status == 404
    answers = service.retrieve(triggers=[17, 999_999], k=5, unknown="popular").json["answers"]
    assert {item["head"] for item in answers[1]["items"]} == {"popular"}
    assert answers[0] == service.retrieve(triggers=[17], k=5).json["answers"][0]
    assert service.retrieve(history=[999_999], unknown="popular").json["answers"][0]["ignored"] == [999_999]


def test_conditions_that_no_item_meets_are_told(service: ServiceProcess) -> None:
    topic = service.call("GET", "/v1/items/17").json["topic_l1"]
    reply = service.retrieve(
        triggers=[17],
        filters={"topic_l1": [topic[:-1].upper()], "where": {"price": {"min": 1e9}}},
        away_from=[17, 999_999],
    )
    assert reply.json["answers"][0]["items"] == []
    first, second, third = reply.json["notes"]
    assert first == f"filters.topic_l1: no item has '{topic[:-1].upper()}'; did you mean '{topic}'?"
    assert second == "filters.where.price: no item has a value in this range"
    assert third == "away_from: the index does not know 999999"
    assert service.retrieve(triggers=[17]).json["notes"] == []


@pytest.mark.parametrize(
    ("question", "field", "message"),
    [
        ({"filters": {"where": {"prce": 1}}}, "filters.where.prce", "did you mean 'price'?"),
        ({"filters": {"where": {"price": "cheap"}}}, "filters.where.price", "this column holds numbers, not 'cheap'"),
        ({"filters": {"exclude": ["x"]}}, "filters.exclude", "item ids of this index are of type int64"),
        ({"filters": {"topic_11": ["a"]}}, "filters.topic_11", "no field of this name; did you mean 'topic_l1'?"),
        ({"divesity": 0.5}, "divesity", "no field of this name; did you mean 'diversity'?"),
        ({"diversity": 1.5}, "diversity", "less than or equal to 1"),
        ({"max_per": {"creatr": 2}}, "max_per.creatr", "did you mean 'creator'?"),
        ({"max_per": {"creator": 0}}, "max_per.creator", "greater than or equal to 1"),
        ({"max_per": {"trigger": 1}}, "max_per.trigger", "only the list of a history has several triggers"),
        ({"boosts": {"price": {"cheap": 2.0}}}, "boosts.price", "this column holds numbers, not 'cheap'"),
        ({"boosts": {"creator": {"a": 0}}}, "boosts.creator.a", "greater than 0"),
        ({"away_from": ["x"]}, "away_from", "item ids of this index are of type int64"),
        ({"shares": {"engagment": 1.0}}, "shares", "did you mean 'engagement'?"),
        ({"triggers": ["x"]}, "triggers", "item ids of this index are of type int64"),
    ],
)
def test_what_does_not_fit_is_named(
    service: ServiceProcess, question: dict[str, Any], field: str, message: str
) -> None:
    refused = service.retrieve(**({"triggers": [17]} | question))
    assert refused.status == 422, refused.body
    assert refused.json["detail"].startswith(f"body.{field}: ")
    assert message in refused.json["detail"]
    assert refused.json["fields"][0]["field"] == f"body.{field}"


def test_lists_that_are_chosen_one_by_one_count_tenfold(service: ServiceProcess) -> None:
    asked = {"triggers": list(range(1, 16)), "k": 5, "k_ann": 2000}
    assert service.retrieve(**asked).status == 200
    refused = service.retrieve(**asked, diversity=0.1)
    assert (refused.status, refused.json["fields"][0]["field"]) == (422, "body.k_ann")
    assert "at most 1666 for 15 triggers, not 2000" in refused.json["detail"]


def test_the_client_asks_for_them_too(service: ServiceProcess, retriever: Retriever) -> None:
    with Client(service.url) as client:
        found = client.recommend(
            HISTORY,
            k=8,
            max_per={"trigger": 3},
            diversity=0.2,
            filters={"where": {"price": {"max": 80}}, "topic_l2": ["nowhere"]},
        )
        assert found.notes == ["filters.topic_l2: no item has 'nowhere'"]
        assert found.items == []
        cheap = client.similar_items(17, k=5, filters={"where": {"price": {"max": 80}}})
        expected = retriever.retrieve(Query([17], k=5, filters=Filters(where={"price": {"max": 80}})))[0]
        assert [item.item for item in cheap.items] == [item.item for item in expected]
        with pytest.raises(ServiceError, match="did you mean 'price'") as refused:
            client.similar_items(17, filters={"where": {"prize": 3}})
        assert "body.filters.where.prize" in refused.value.fields
