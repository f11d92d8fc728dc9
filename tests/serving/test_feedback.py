"""Alpha from feedback over HTTP: chosen within bounds, learned, in metrics, kept over a restart, off by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from service_process import Reply, ServiceProcess


def adaptive(folder: Path) -> dict[str, Any]:
    return {"alphas": [20, 80], "explore": 0.5, "file": str(folder / "feedback.sqlite")}


def feed(running: ServiceProcess, answer: Reply, num_engaged: int) -> Reply:
    shown = [item["item"] for item in answer.json["answers"][0]["items"]]
    content = {"request_id": answer.headers["X-Request-ID"], "shown": shown, "engaged": shown[:num_engaged]}
    return running.write("POST", "/v1/feedback", content)


def test_feedback_moves_alpha_and_outlives_the_process(served_recipe: Path, tmp_path: Path) -> None:
    with ServiceProcess(served_recipe, adaptive_alpha=adaptive(tmp_path)) as running:
        assert running.call("GET", "/v1/index").json["adaptive_alpha"] is True
        chosen = []
        for number in range(80):
            answer = running.retrieve(triggers=[number % 20 + 1], k=10)
            chosen.append(answer.json["alpha"])
            taken = feed(running, answer, 4 if chosen[-1] == 80 else 1)
            assert (taken.status, taken.json["counted"]) == (200, True), taken.body
        assert set(chosen) == {20, 80}
        assert chosen[40:].count(80) > 22  # three of four: half is drawn evenly
        assert feed(running, answer, 2).json["counted"] is False
        learned = running.call("GET", "/v1/feedback").json
        assert learned["num_feedback"] == 80
        low, high = learned["alphas"]
        assert (low["alpha"], high["alpha"], low["chosen"] + high["chosen"]) == (20, 80, 80)
        assert low["reward"]["snips"]["value"] == pytest.approx(0.1)
        assert high["reward"]["snips"]["value"] == pytest.approx(0.4)
        assert running.metric("mtmh_feedback_rewards") == 80
        assert running.metric('mtmh_alpha_choices_total{alpha="80"}') == high["chosen"]
        shown = running.metric('mtmh_alpha_reward{alpha="80",estimator="dr"}')
        assert shown == pytest.approx(high["reward"]["dr"]["value"])
    with ServiceProcess(served_recipe, adaptive_alpha=adaptive(tmp_path)) as again:
        assert again.call("GET", "/v1/feedback").json["num_feedback"] == 80


def test_a_request_that_names_its_alpha_keeps_it_and_earns_nothing(served_recipe: Path, tmp_path: Path) -> None:
    with ServiceProcess(served_recipe, adaptive_alpha=adaptive(tmp_path)) as running:
        named = running.retrieve(triggers=[3], alpha=50)
        assert named.json["alpha"] == 50
        assert feed(running, named, 1).status == 404
        shared = running.retrieve(triggers=[3], shares={"engagement": 1.0})
        assert shared.json["alpha"] is None
        history = running.retrieve(history=[3, 4], k=5)  # its list is the preranker's, whatever alpha
        assert feed(running, history, 1).status == 404
        side = running.retrieve(triggers=[3], side_by_side=True)
        assert feed(running, side, 1).status == 404
        similar = running.call("GET", "/v1/items/3/similar?k=5")
        assert similar.json["alpha"] in (20, 80)
        assert feed(running, similar, 1).status == 200
        assert running.retrieve(triggers=["x"]).status == 422
        assert running.retrieve(triggers=[999_999]).status == 404


def test_feedback_that_does_not_fit_is_refused(served_recipe: Path, tmp_path: Path) -> None:
    with ServiceProcess(served_recipe, adaptive_alpha=adaptive(tmp_path)) as running:
        answer = running.retrieve(triggers=[3], k=3)
        shown = [item["item"] for item in answer.json["answers"][0]["items"]]
        body = {"request_id": answer.headers["X-Request-ID"], "shown": shown}
        for wrong, message in (
            ({"engaged": [999]}, "999 is not among the items shown"),
            ({"shown": []}, "shown"),
            ({"seen": []}, "seen"),
        ):
            refused = running.write("POST", "/v1/feedback", body | wrong)
            assert refused.status == 422, refused.body
            assert message in refused.body.decode()
        assert running.call("POST", "/v1/feedback", body).status == 401
        assert running.write("POST", "/v1/feedback", body | {"request_id": "unknown"}).status == 404
        assert running.write("POST", "/v1/feedback", body).json["counted"] is True  # nothing engaged counts, too


def test_without_the_setting_nothing_is_chosen(service: ServiceProcess) -> None:
    assert service.call("GET", "/v1/index").json["adaptive_alpha"] is False
    answer = service.retrieve(triggers=[3])
    assert answer.json["alpha"] == 50
    assert feed(service, answer, 1).status == 409
    assert service.call("GET", "/v1/feedback").status == 409
    assert "mtmh_alpha" not in service.call("GET", "/metrics").body.decode()
