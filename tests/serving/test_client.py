"""The Python client against a real service."""

from __future__ import annotations

import socket

import httpx2
import pytest
from service_process import ServiceProcess

from mtmh.client import Client, ServiceError


def test_answers_are_those_of_the_service(service: ServiceProcess) -> None:
    with Client(service.url) as client:
        found = client.similar_items(17, k=4, alpha=30, filters={"exclude": [4]})
        expected = service.retrieve(triggers=[17], k=4, alpha=30, filters={"exclude": [4]}, describe=True).json
        assert [(item.item, item.head, item.score) for item in found.items] == [
            (item["item"], item["head"], item["score"]) for item in expected["answers"][0]["items"]
        ]
        texts = {text["item"]: text["text"] for text in expected["descriptions"]}
        assert [item.text for item in found.items] == [texts[item.item] for item in found.items]
        assert found.version == expected["version"]
        assert found.ignored == []
        user = client.recommend([17, 999_999, 4], k=6)
        assert user.ignored == [999_999]
        assert len(user.items) == 6
        assert client.find("17")[0]["item"] == 17
        assert client.index()["heads"] == ["engagement", "relevance"]


def test_refusals_are_said_in_the_words_of_the_service(service: ServiceProcess) -> None:
    with Client(service.url) as client:
        with pytest.raises(ServiceError, match="unknown trigger 999999") as unknown:
            client.similar_items(999_999)
        assert unknown.value.status == 404
        with pytest.raises(ServiceError, match=r"body\.alpha") as refused:
            client.similar_items(17, alpha=101)
        assert refused.value.status == 422
        assert "body.alpha" in refused.value.fields


def test_no_service_is_an_error_of_the_network() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with Client(f"http://127.0.0.1:{taken.getsockname()[1]}") as client, pytest.raises(httpx2.TransportError):
            client.index()
