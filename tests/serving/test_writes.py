"""Fresh items and removals over HTTP: answered at once, durable, safe from what a client may send."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from service_process import Reply, ServiceProcess
from synthetic_dataset import make_config
from test_retriever import NUM_ITEMS, write_index

from mtmh.config import load_config
from mtmh.index.versions import new_version, publish
from mtmh.live.compaction import compact


@pytest.fixture(scope="module")
def own_recipe(served_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    shutil.copytree(served_recipe.parent / "runs", folder / "runs")
    recipe = folder / "served.yaml"
    recipe.write_text(served_recipe.read_text().replace(str(served_recipe.parent), str(folder)))
    return recipe


@pytest.fixture(scope="module")
def written(own_recipe: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(own_recipe, max_new_items=5, cache_mb=4) as running:
        yield running


@pytest.fixture(scope="module")
def row(written: ServiceProcess) -> dict[str, Any]:
    """Every feature, none known."""
    return dict.fromkeys(written.call("GET", "/v1/index").json["features"])


def items_of(reply: Reply) -> list[int]:
    assert reply.status == 200, reply.body
    return [item["item"] for item in reply.json["answers"][0]["items"]]


def only(item: int) -> dict[str, Any]:
    return {"triggers": [17], "k": 1, "filters": {"allow": [item]}}


def test_an_item_comes_and_goes(written: ServiceProcess, row: dict[str, Any]) -> None:
    size = written.metric("mtmh_index_items")
    before = written.retrieve(**only(5001))
    assert items_of(before) == []
    added = written.write("POST", "/v1/items", {"items": [row | {"item_id": 5001, "text": "a lamp like no other"}]})
    assert added.status == 200, added.body
    assert added.json["items"] == [5001]
    assert items_of(written.retrieve(**only(5001))) == [5001]
    assert len(items_of(written.retrieve(triggers=[5001], k=5))) == 5
    assert written.retrieve(**only(5001)).json["version"] == added.json["version"] != before.json["version"]
    assert written.call("GET", "/v1/items?query=like+no+other").json["items"][0]["item"] == 5001
    assert written.metric("mtmh_index_items") == size + 1
    again = written.write("POST", "/v1/items", {"items": [row | {"item_id": 5001, "text": "a lamp like no other"}]})
    assert (again.status, again.json) == (200, added.json)
    twice = written.write("POST", "/v1/items", {"items": [row | {"item_id": 5001}]})
    assert twice.status == 422
    assert "5001" in twice.json["detail"]
    removed = written.write("DELETE", "/v1/items/5001")
    assert removed.status == 200, removed.body
    assert items_of(written.retrieve(**only(5001))) == []
    assert written.write("DELETE", "/v1/items/5001").status == 404
    assert written.write("DELETE", "/v1/items/x").status == 422


def test_changes_outlive_the_process(own_recipe: Path, written: ServiceProcess, row: dict[str, Any]) -> None:
    assert written.write("POST", "/v1/items", {"items": [row | {"item_id": 5002}]}).status == 200
    gone = written.call("GET", "/v1/items?limit=1").json["items"][0]["item"]
    assert written.write("DELETE", f"/v1/items/{gone}").status == 200
    with ServiceProcess(own_recipe) as another:
        assert items_of(another.retrieve(**only(5002))) == [5002]
        assert items_of(another.retrieve(**only(gone))) == []
        # The other way round: what one process writes, the other one shows.
        assert another.write("DELETE", "/v1/items/5002").status == 200
        written.wait_for(another.call("GET", "/readyz").json["version"])
        assert items_of(written.retrieve(**only(5002))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": "B00"}, "item_id"),
        ({"item_id": None}, "item_id"),
        ({"colour": "red"}, "colour"),
        ({"text": 5}, "text"),
        ({"text": "half a character: \ud800"}, "text"),
        ({"price": 10**400}, "price"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    written: ServiceProcess, row: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    refused = written.write("POST", "/v1/items", {"items": [row | {"item_id": 5100} | change]})
    assert refused.status == 422, refused.body
    assert message in refused.json["detail"]
    assert items_of(written.retrieve(**only(5100))) == []


def test_a_removed_item_stays_a_trigger_and_no_answer_before_and_after_compaction(
    served_recipe: Path, tmp_path: Path
) -> None:
    shutil.copytree(served_recipe.parent / "runs", tmp_path / "runs")
    recipe = tmp_path / "served.yaml"
    recipe.write_text(served_recipe.read_text().replace(str(served_recipe.parent), str(tmp_path)))
    never = 999_999

    def state(running: ServiceProcess) -> dict[str, Any]:
        assert [running.write("DELETE", f"/v1/items/{item}").status for item in (17, never)] == [404, 404]
        assert running.call("GET", "/v1/items/17").status == 404
        unknown = running.retrieve(triggers=[never])
        assert (unknown.status, f"unknown trigger {never}" in unknown.json["detail"]) == (404, True)
        assert running.retrieve(triggers=[17, never]).status == 404
        assert items_of(running.retrieve(triggers=[4], k=1, filters={"allow": [17]})) == []
        similar = running.call("GET", "/v1/items/17/similar?k=20")
        user = running.retrieve(history=[17, never, 4], k=20)
        assert (user.status, user.json["answers"][0]["ignored"]) == (200, [never])
        assert 17 not in items_of(user)
        return {"similar": items_of(similar), "alone": items_of(running.retrieve(history=[17], k=20))}

    with ServiceProcess(recipe) as running:
        shown = items_of(running.retrieve(triggers=[17], k=20))
        assert running.write("DELETE", "/v1/items/17").status == 200
        before = state(running)
        assert before["similar"] == shown
        running.wait_for(compact(load_config(recipe)).name)
        assert state(running) == before
    with ServiceProcess(recipe) as another:
        assert state(another) == before


def test_a_fault_of_ours_is_logged_by_its_request_id_and_told_to_nobody(
    served_recipe: Path, row: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(served_recipe.parent / "runs", tmp_path / "runs")
    recipe = tmp_path / "served.yaml"
    recipe.write_text(served_recipe.read_text().replace(str(served_recipe.parent), str(tmp_path)))
    segment = load_config(recipe).model_dir("index") / "segments" / "000001"
    with ServiceProcess(recipe, reload_seconds=3600) as running:
        segment.mkdir(parents=True)
        (segment / "manifest.json").write_text("{}")  # a ValueError, as a field that does not fit is one
        failed = running.write("POST", "/v1/items", {"items": [row | {"item_id": 5400}]})
        assert failed.status == 500, failed.body
        assert failed.headers["Content-Type"] == "application/problem+json"
        assert failed.headers["X-Content-Type-Options"] == "nosniff"
        request_id = failed.headers["X-Request-ID"]
        assert failed.json["detail"] == f"a fault of the service, logged as request {request_id}"
        log = running.log.read_text()
        assert log.count("Traceback") == 1, log
        assert f"request {request_id} failed: POST '/v1/items'" in log
        assert f"{segment / 'manifest.json'}: " in log
        assert running.metric('mtmh_requests_total{route="/v1/items",status="500"}') == 1
        own = running.call("POST", "/v1/retrieve", {"triggers": [17]}, headers={"X-Request-ID": "edge-1.a_b"})
        assert (own.status, own.headers["X-Request-ID"]) == (200, "edge-1.a_b")
        for hostile in ("a b", "x" * 65, "é", ""):
            answer = running.call("GET", "/healthz", headers={"X-Request-ID": hostile})
            assert len(answer.headers["X-Request-ID"]) == 32


def test_limits_of_a_write(written: ServiceProcess, row: dict[str, Any]) -> None:
    rows = [row | {"item_id": 5200 + place} for place in range(6)]
    refused = written.write("POST", "/v1/items", {"items": rows})
    assert refused.status == 422
    assert "at most 5 items, not 6" in refused.json["detail"]
    assert written.write("POST", "/v1/items", {"items": []}).status == 422


def test_names_that_look_like_paths_reach_no_file(
    own_recipe: Path, written: ServiceProcess, row: dict[str, Any]
) -> None:
    before = {path.parent for path in own_recipe.parent.parent.rglob("*")}
    hostile = row | {"item_id": 5300, "text": "../../../evil", "topic_l1": "/etc/passwd"}
    assert written.write("POST", "/v1/items", {"items": [hostile]}).status == 200
    assert written.write("DELETE", "/v1/items/..%2f..%2fserved.yaml").status == 422
    assert written.write("POST", "/v1/items", {"items": [hostile | {"item_id": "../../evil"}]}).status == 422
    index_dir = load_config(own_recipe).model_dir("index")
    new = {path.parent for path in own_recipe.parent.parent.rglob("*")} - before
    assert all(path.is_relative_to(index_dir / "segments") for path in new), new
    assert not list(own_recipe.parent.rglob("*evil*"))


def test_writes_and_questions_at_the_same_time(written: ServiceProcess, row: dict[str, Any]) -> None:
    def change(item: int) -> None:
        assert written.write("POST", "/v1/items", {"items": [row | {"item_id": item}]}).status == 200
        assert items_of(written.retrieve(**only(item))) == [item]
        assert written.write("DELETE", f"/v1/items/{item}").status == 200
        assert items_of(written.retrieve(**only(item))) == []

    with ThreadPoolExecutor(4) as threads:
        answered = [threads.submit(written.retrieve, triggers=[17], k=5) for _ in range(40)]
        changed = [threads.submit(change, 5400 + place) for place in range(6)]
        assert all(len(items_of(future.result())) == 5 for future in answered)
        for future in changed:
            future.result()


@pytest.mark.parametrize("has_versions", [False, True])
def test_an_index_that_cannot_take_a_change_says_so(tmp_path: Path, has_versions: bool) -> None:
    index_dir = make_config(tmp_path).model_dir("index")
    folder = new_version(index_dir) if has_versions else index_dir
    write_index(folder, ids=pa.array(range(NUM_ITEMS)))
    if has_versions:
        publish(folder)
    recipe = tmp_path / "served.yaml"
    recipe.write_text(make_config(tmp_path).model_dump_json())
    with ServiceProcess(recipe) as running:
        added = running.write("POST", "/v1/items", {"items": [{"item_id": 5001}]})
        removed = running.write("DELETE", "/v1/items/3")
    assert (added.status, removed.status) == (409, 200 if has_versions else 409), (added.body, removed.body)
    assert ("no tower" if has_versions else "without versions") in added.json["detail"]
    assert str(tmp_path) not in added.json["detail"]
