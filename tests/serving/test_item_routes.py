"""Routes of one item, and the page of the API."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest
from browser import CHROMIUM, Browser
from service_process import ServiceProcess


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running
        assert running.problems == []


def test_one_item(service: ServiceProcess) -> None:
    found = service.call("GET", "/v1/items/17")
    assert found.status == 200
    listed = service.call("GET", "/v1/items?query=17").json["items"][0]
    version = service.call("GET", "/v1/index").json["version"]
    assert found.json == listed | {"version": version}
    for unknown in ("999999", "no/such%20thing"):
        missing = service.call("GET", f"/v1/items/{unknown}")
        assert missing.status in (404, 422)
        assert missing.headers["Content-Type"] == "application/problem+json"
        assert missing.json["detail"].startswith(("unknown item", "item "))


def test_similar_items_are_those_of_a_request_with_one_trigger(service: ServiceProcess) -> None:
    found = service.call("GET", "/v1/items/17/similar?k=4&alpha=30")
    assert found.status == 200
    expected = service.retrieve(triggers=[17], k=4, alpha=30, describe=True).json
    assert found.json == expected
    assert len(found.json["answers"][0]["items"]) == 4
    by_default = service.call("GET", "/v1/items/17/similar").json
    assert by_default["answers"] == service.retrieve(triggers=[17]).json["answers"]


def test_what_does_not_fit_names_the_field(service: ServiceProcess) -> None:
    for query, field in (("k=0", "query.k"), ("alpha=101", "query.alpha"), ("k=100000", "query.k"), ("k=x", "query.k")):
        refused = service.call("GET", f"/v1/items/17/similar?{query}")
        assert refused.status == 422, query
        assert refused.json["detail"].startswith(f"{field}: ")
        assert refused.json["fields"][0]["field"] == field
    for path, field in (("/v1/items/17/similar?alfa=3", "alpha"), ("/v1/items?lmit=3", "limit")):
        refused = service.call("GET", path)
        assert refused.status == 422
        assert f"no field of this name; did you mean '{field}'?" in refused.json["detail"]
    assert service.call("GET", "/v1/items/999999/similar").status == 404
    assert service.call("GET", f"/v1/items/{quote('x' * 300)}").json["fields"][0]["field"] == "path.item_id"


def test_unknown_items_of_a_history_are_passed_over_and_listed(service: ServiceProcess) -> None:
    answer = service.retrieve(history=[17, 999_999, 4, 999_999], k=5).json["answers"][0]
    assert answer["ignored"] == [999_999]
    assert len(answer["items"]) == 5
    assert service.retrieve(history=[999_999]).status == 404
    assert service.retrieve(triggers=[999_999]).status == 404


def test_the_page_of_the_api_needs_nothing_from_elsewhere(service: ServiceProcess, browser: Browser) -> None:
    browser.open(f"http://127.0.0.1:{service.port}/docs")
    browser.wait("document.querySelectorAll('#routes section').length > 5")
    shown = browser.evaluate("document.body.innerText")
    for words in ("POST /v1/retrieve", "GET /v1/items/{item_id}/similar", "side_by_side", "curl -s http://127.0.0.1"):
        assert words in shown
    assert "Version" in browser.evaluate("document.getElementById('about').textContent")
    assert browser.evaluate("performance.getEntriesByType('resource').every((r) => r.name.startsWith(location.origin))")
