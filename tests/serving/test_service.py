"""The HTTP service: a real process, asked over real HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from service_process import KEY, Reply, ServiceProcess

from mtmh.config import load_config
from mtmh.retrieval.query import Query
from mtmh.retrieval.retriever import Retriever
from mtmh.serving.api import IndexResponse, RetrieveResponse


def valid(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    TypeAdapter(RetrieveResponse).validate_json(reply.body)
    content: dict[str, Any] = reply.json
    return content


def problem_of(reply: Reply, status: int) -> dict[str, Any]:
    assert reply.status == status, reply.body
    assert reply.headers["Content-Type"] == "application/problem+json"
    assert reply.json["status"] == status
    content: dict[str, Any] = reply.json
    return content


def test_answers_are_those_of_the_retriever(service: ServiceProcess, served_recipe: Path) -> None:
    retriever = Retriever.load(load_config(served_recipe).model_dir("index"))
    for settings in ({}, {"k": 4, "alpha": 0}, {"k": 7, "k_ann": 30, "num_probes": 3, "alpha": 80}):
        content = valid(service.retrieve(triggers=[17, "4", 17], **settings))
        expected = retriever.retrieve(Query([17, 4, 17], **settings))
        assert content["alpha"] == settings.get("alpha", 50)
        assert [answer["trigger"] for answer in content["answers"]] == [17, 4, 17]
        for answer, row in zip(content["answers"], expected, strict=True):
            assert [
                (
                    item["item"],
                    item["head"],
                    item["trigger"],
                    pytest.approx(item["score"]),
                    pytest.approx(item["similarity"]),
                )
                for item in answer["items"]
            ] == [(item.item, item.head, item.trigger, item.score, item.similarity) for item in row]


def test_a_history_gets_one_list_sorted_by_score(service: ServiceProcess) -> None:
    history = [17, 4, 23]
    content = valid(service.retrieve(history=history, k=12, describe=True))
    (answer,) = content["answers"]
    assert answer["trigger"] is None
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 12
    assert scores == sorted(scores, reverse=True)
    assert not {item["item"] for item in answer["items"]} & set(history)
    assert len({item["item"] for item in answer["items"]}) == 12
    assert {item["trigger"] for item in answer["items"]} <= set(history)
    described = {text["item"]: text for text in content["descriptions"]}
    assert set(described) == {item["item"] for item in answer["items"]} | set(history)
    assert all(text["text"] and text["topic_l1"] for text in described.values())


def test_side_by_side_holds_each_head_alone(service: ServiceProcess) -> None:
    content = valid(service.retrieve(triggers=[17], k=6, alpha=50, side_by_side=True))
    (answer,) = content["answers"]
    assert list(answer["heads"]) == ["engagement", "relevance"]
    for head, alpha in (("engagement", 100), ("relevance", 0)):
        alone = valid(service.retrieve(triggers=[17], k=6, alpha=alpha))["answers"][0]["items"]
        assert [item["item"] for item in answer["heads"][head]] == [item["item"] for item in alone]
    assert answer["items"] == valid(service.retrieve(triggers=[17], k=6, alpha=50))["answers"][0]["items"]


def test_excluded_items_are_in_no_answer(service: ServiceProcess) -> None:
    best = [item["item"] for item in valid(service.retrieve(triggers=[17], k=4))["answers"][0]["items"]]
    left = valid(service.retrieve(triggers=[17], k=4, filters={"exclude": best}))["answers"][0]["items"]
    assert len(left) == 4
    assert not set(best) & {item["item"] for item in left}


def test_requests_at_the_same_time_get_their_own_answers(service: ServiceProcess) -> None:
    items = [item["item"] for item in service.call("GET", "/v1/items?limit=40").json["items"]]
    alone = {item: service.retrieve(triggers=[item], k=5).json["answers"] for item in items}
    with ThreadPoolExecutor(20) as threads:
        # Another k_ann, so that none of these comes from the cache.
        fresh = {"k": 5, "k_ann": 99}
        replies = list(threads.map(lambda item: (item, service.retrieve(triggers=[item], **fresh).json), items * 5))
    for item, content in replies:
        for answer, expected in zip(content["answers"], alone[item], strict=True):
            assert [item["item"] for item in answer["items"]] == [item["item"] for item in expected["items"]]


def test_one_unknown_trigger_fails_its_own_request_only(service: ServiceProcess) -> None:
    with ThreadPoolExecutor(16) as threads:
        items = [17, 999_999] * 40
        replies = list(threads.map(lambda item: service.retrieve(triggers=[item], k=3).status, items))
    assert replies == [200, 404] * 40
    assert "999999" in problem_of(service.retrieve(triggers=[999_999]), 404)["detail"]


@pytest.mark.parametrize(
    ("question", "field", "message"),
    [
        ({}, "body", "either triggers or history"),
        ({"triggers": [17], "history": [4]}, "body", "either triggers or history"),
        ({"triggers": []}, "body.triggers", "at least 1"),
        ({"triggers": [17] * 21}, "body.triggers", "at most 20 items, not 21"),
        ({"triggers": [1.5]}, "body.triggers.0", "integer"),
        ({"triggers": [True]}, "body.triggers.0", "integer"),
        ({"triggers": [2**63]}, "body.triggers.0", "less than"),
        ({"triggers": [17], "k": 0}, "body.k", "greater than or equal to 1"),
        ({"triggers": [17], "k": 501}, "body.k", "at most 500, not 501"),
        ({"triggers": [17], "k_ann": 10**6}, "body.k_ann", "at most 10000"),
        ({"triggers": [17] * 20, "k_ann": 10_000, "k": 10, "num_probes": 1, "alpha": 101}, "body.alpha", "100"),
        ({"triggers": [17], "alpha": "lots"}, "body.alpha", "number"),
        ({"triggers": [17], "colour": 1}, "body.colour", "no field of this name"),
        ({"triggers": [17, 4], "side_by_side": True}, "body", "exactly one trigger"),
        ({"triggers": [17], "filters": {"exclude": "x"}}, "body.filters.exclude", "list"),
        ({"history": [17] * 501}, "body.history", "at most 500 items"),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_field_and_expectation(
    service: ServiceProcess, question: dict[str, Any], field: str, message: str
) -> None:
    found = problem_of(service.retrieve(**question), 422)
    assert [fault for fault in found["fields"] if fault["field"].startswith(field) and message in fault["expected"]], (
        found
    )
    assert found["fields"][0]["expected"] in found["detail"]


def test_the_work_of_one_request_is_bounded(service: ServiceProcess) -> None:
    found = problem_of(service.retrieve(history=[*range(1, 61)], k_ann=9000), 422)
    assert "at most 4166 for 60 triggers" in found["detail"]


def test_settings_that_do_not_fit_each_other(service: ServiceProcess) -> None:
    assert "k is 9, more than the 8" in problem_of(service.retrieve(triggers=[17], k=9, k_ann=8), 422)["detail"]
    assert "int64" in problem_of(service.retrieve(triggers=["B00"]), 422)["detail"]


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[1]", b'"x"', b"\xff", b"[" * 9000, b'{"triggers": [NaN]}', b'{"triggers": ["\\ud800"]}'],
)  # fmt: skip
def test_what_is_not_a_request_is_refused(service: ServiceProcess, raw: bytes) -> None:
    reply = service.call("POST", "/v1/retrieve", raw=raw)
    assert reply.status in (400, 422), reply.body
    problem_of(reply, reply.status)


def test_a_body_without_its_content_type_is_told_the_header(service: ServiceProcess) -> None:
    plain = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = service.call("POST", "/v1/retrieve", {"triggers": [17]}, headers=plain)
    assert "Content-Type: application/json" in problem_of(reply, 422)["detail"]


def test_a_large_body_is_refused_before_it_is_read(service: ServiceProcess) -> None:
    problem_of(service.call("POST", "/v1/retrieve", raw=b" " * 20_001), 413)
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        # Announced only; not a byte of it is sent.
        client.sendall(b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        # In chunks, with no length given.
        client.sendall(b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(6):
            client.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413")
    assert service.metric('mtmh_rejected_total{reason="body_too_large"}') >= 3


def test_other_paths_and_methods(service: ServiceProcess) -> None:
    problem_of(service.call("GET", "/nowhere"), 404)
    problem_of(service.call("GET", "/static/../app.py"), 404)
    problem_of(service.call("GET", "/static/%2e%2e/app.py"), 404)
    problem_of(service.call("PUT", "/v1/retrieve"), 405)


def test_items_by_their_text(service: ServiceProcess) -> None:
    popular = service.call("GET", "/v1/items?limit=3").json["items"]
    assert len(popular) == 3
    word = popular[0]["text"].split()[0]
    found = service.call("GET", f"/v1/items?query={word.upper()}&limit=50").json["items"]
    assert popular[0]["item"] in [item["item"] for item in found]
    assert all(word.lower() in item["text"].lower() for item in found)
    assert service.call("GET", "/v1/items?query=17").json["items"][0]["item"] == 17
    assert service.call("GET", "/v1/items?query=nosuchword").json["items"] == []
    assert service.call("GET", "/v1/items?query=%28%5B.*").json["items"] == []
    assert service.call("GET", f"/v1/items?query={'+'.join('abcdefgh')}").status == 200
    many = problem_of(service.call("GET", f"/v1/items?query={'+'.join('abcdefghi')}"), 422)
    assert "at most 8 words, not 9" in many["detail"]
    problem_of(service.call("GET", "/v1/items?limit=101"), 422)
    problem_of(service.call("GET", f"/v1/items?query={'x' * 201}"), 422)


def test_what_the_service_answers_from(service: ServiceProcess) -> None:
    found = TypeAdapter(IndexResponse).validate_json(service.call("GET", "/v1/index").body)
    assert (found.model, found.num_items, found.heads) == ("served", 400, ["engagement", "relevance"])
    assert found.writes
    assert found.curve is not None
    assert found.curve.same_index
    assert [point.alpha for point in found.curve.points] == [0, 50, 100]


def test_repeated_questions_come_from_the_cache(service: ServiceProcess) -> None:
    first = service.retrieve(triggers=[31], k=3)
    hits = service.metric('mtmh_cache_lookups_total{result="hit"}')
    again = service.retrieve(triggers=[31], k=3, timeout_ms=5000)
    assert again.body == first.body
    assert again.headers["Server-Timing"] == "cache"
    assert service.metric('mtmh_cache_lookups_total{result="hit"}') == hits + 1


def test_metrics_name_stages_queue_and_version(service: ServiceProcess) -> None:
    service.retrieve(triggers=[77])
    text = service.call("GET", "/metrics").body.decode()
    for stage in ("queue", "search", "encode"):
        assert f'mtmh_stage_seconds_count{{stage="{stage}"}}' in text
    assert service.metric("mtmh_queue_depth") == 0
    assert service.metric("mtmh_index_items") == 400
    assert 'mtmh_index_info{version="' in text
    assert service.metric('mtmh_requests_total{route="/v1/retrieve",status="200"}') >= 1
    assert 'route="/nowhere"' not in text
    assert float(service.retrieve(triggers=[78]).headers["Server-Timing"].split("search;dur=")[1].split(",")[0]) > 0


def test_headers_keep_the_page_to_itself(service: ServiceProcess) -> None:
    page = service.call("GET", "/")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    for name in ("explorer.js", "ids.js", "merge.js", "curve.js", "style.css", "icon.svg"):
        assert service.call("GET", f"/static/{name}").status == 200


def test_openapi_has_examples_limits_and_errors(service: ServiceProcess) -> None:
    schema = service.call("GET", "/openapi.json").json
    request = schema["components"]["schemas"]["RetrieveRequest"]
    for example in request["examples"]:
        valid(service.retrieve(**example))
    assert {choice.get("maxItems") for choice in request["properties"]["triggers"]["anyOf"]} == {20, None}
    responses = schema["paths"]["/v1/retrieve"]["post"]["responses"]
    assert {"200", "404", "413", "422", "429", "504"} <= set(responses)
    assert "application/problem+json" in responses["429"]["content"]


def test_writes_need_a_key(service: ServiceProcess, served_recipe: Path) -> None:
    row = {"items": [{"item_id": 5000}]}
    problem_of(service.call("POST", "/v1/items", row), 401)
    problem_of(service.call("POST", "/v1/items", row, headers={"X-API-Key": KEY + "x"}), 401)
    problem_of(service.call("DELETE", "/v1/items/17"), 401)
    problem_of(service.call("DELETE", "/v1/items/17", headers={"X-API-Key": "é"}), 401)
    with ServiceProcess(served_recipe, key=None) as closed:
        found = problem_of(closed.write("POST", "/v1/items", row), 403)
        assert "MTMH_API_KEYS" in found["detail"]
        problem_of(closed.write("DELETE", "/v1/items/17"), 403)
        assert not closed.call("GET", "/v1/index").json["writes"]


def test_overload_is_refused_and_the_accepted_are_answered(served_recipe: Path) -> None:
    with ServiceProcess(served_recipe, threads=1, queue_size=2, batch_triggers=1) as small:
        question = {"triggers": [*range(1, 101)], "k": 100, "k_ann": 400, "num_probes": 20}
        with ThreadPoolExecutor(24) as threads:
            replies = list(threads.map(lambda alpha: small.retrieve(**question, alpha=alpha), range(48)))
        statuses = [reply.status for reply in replies]
        assert set(statuses) == {200, 429}
        assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status == 429)
        reasons = [small.metric(f'mtmh_rejected_total{{reason="{name}"}}') for name in ("queue_full", "overloaded")]
        assert sum(reasons) == statuses.count(429)
        late = problem_of(small.retrieve(**question, timeout_ms=1), 504)
        assert "budget" in late["detail"]
        assert valid(small.retrieve(triggers=[17]))


def test_only_requests_under_way_count_towards_their_limit(served_recipe: Path) -> None:
    with ServiceProcess(served_recipe, max_requests=3) as running:
        idle = [http.client.HTTPConnection("127.0.0.1", running.port, timeout=60) for _ in range(8)]
        slow = [socket.create_connection(("127.0.0.1", running.port), timeout=60) for _ in range(3)]
        try:
            for connection in idle:
                connection.request("GET", "/healthz")
                assert connection.getresponse().read()
            assert valid(running.retrieve(triggers=[17])), "eight connections that a proxy keeps are no requests"
            for client in slow:
                client.sendall(b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            end = time.monotonic() + 60
            while (refused := running.retrieve(triggers=[17])).status == 200:
                assert time.monotonic() < end
            assert "under way" in problem_of(refused, 429)["detail"]
            assert running.call("GET", "/healthz").status == 200
            assert running.call("GET", "/readyz").status == 200
            assert running.metric('mtmh_rejected_total{reason="too_many_requests"}') >= 1
            slow.pop().close()
            while running.retrieve(triggers=[17]).status != 200:
                assert time.monotonic() < end
        finally:
            for connection in idle:
                connection.close()
            for opened in slow:
                opened.close()


def test_sigterm_answers_what_is_under_way_and_says_not_ready(served_recipe: Path) -> None:
    with ServiceProcess(served_recipe, threads=1, batch_triggers=1, drain_seconds=1.0) as ending:
        question = {"triggers": [*range(1, 101)], "k": 100, "k_ann": 400, "num_probes": 20}
        with ThreadPoolExecutor(8) as threads:
            under_way = [threads.submit(ending.retrieve, **question, alpha=alpha) for alpha in range(8)]
            time.sleep(0.05)
            ending.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            ready = ending.call("GET", "/readyz")
            problem_of(ready, 503)
            assert ready.headers["Connection"] == "close"
            assert ending.call("GET", "/healthz").status == 200
            assert valid(ending.retrieve(triggers=[17]))  # still answered while the load balancer looks away
            for request in under_way:
                valid(request.result())
        assert ending.process.wait(timeout=20) == 0
    with pytest.raises(ConnectionRefusedError):
        ending.call("GET", "/healthz")


def test_a_service_without_an_index_says_so_and_ends(tmp_path: Path, served_recipe: Path) -> None:
    recipe = tmp_path / "empty.yaml"
    recipe.write_text(served_recipe.read_text().replace(str(served_recipe.parent), str(tmp_path)))
    with pytest.raises(AssertionError, match=r"error: .*index"):
        ServiceProcess(recipe)


def test_an_address_in_use_and_an_unreadable_key_file(service: ServiceProcess, served_recipe: Path) -> None:
    command = [sys.executable, "-m", "mtmh.cli", "serve", str(served_recipe), "--port", str(service.port)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert f"error: cannot listen on 127.0.0.1:{service.port}" in ended.stderr
    with pytest.raises(AssertionError, match=r"error: service\.api_keys_file .*not readable"):
        ServiceProcess(served_recipe, api_keys_file="/nowhere/keys")


def test_slow_and_broken_clients_do_not_hold_up_others(served_recipe: Path) -> None:
    with ServiceProcess(served_recipe, timeout_ms=500) as running:
        slow = socket.create_connection(("127.0.0.1", running.port), timeout=20)
        slow.sendall(b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        broken = socket.create_connection(("127.0.0.1", running.port), timeout=20)
        broken.sendall(b"nonsense\r\n\r\n")
        gone = http.client.HTTPConnection("127.0.0.1", running.port)
        gone.request("POST", "/v1/retrieve", json.dumps({"triggers": [1]}), {"Content-Type": "application/json"})
        assert gone.sock is not None
        gone.sock.close()
        assert valid(running.retrieve(triggers=[17]))
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert broken.recv(4096).startswith(b"HTTP/1.1 400")
        slow.close()
        broken.close()
        assert threading.active_count() < 50
        assert "Traceback" not in running.log.read_text()
