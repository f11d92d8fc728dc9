"""The settings of the recipe that asks, where they differ from those that the index was built with."""

from pathlib import Path

import pytest
from service_process import ServiceProcess
from typer.testing import CliRunner

from mtmh.cli import app
from mtmh.config import load_config
from mtmh.retrieval.retriever import Retriever


def test_the_service_goes_by_the_recipe_it_serves(served_recipe: Path) -> None:
    settings = {"retrieval.alpha": 100, "retrieval.k": 4, "retrieval.unknown": "popular"}
    with ServiceProcess(served_recipe, **settings) as service:
        known, unknown = service.retrieve(triggers=[17, 999_999]).json["answers"]
        assert service.retrieve(triggers=[17]).json["alpha"] == 100
        assert [item["head"] for item in known["items"]] == 4 * ["engagement"]
        assert [item["head"] for item in unknown["items"]] == 4 * ["popular"]
        told = service.call("GET", "/v1/index").json
        assert (told["alpha"], told["k"], told["k_ann"], told["num_probes"]) == (100, 4, 100, 20)


def test_retrieve_goes_by_the_recipe_it_is_given(served_recipe: Path) -> None:
    def run(*options: str) -> str:
        done = CliRunner().invoke(app, ["retrieve", str(served_recipe), "--trigger", "17", *options])
        assert done.exit_code == 0, done.output
        return done.output

    assert run("--set", "retrieval.alpha=0") == run("--alpha", "0") != run()


def test_who_ranks_is_a_part_of_the_index(served_recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(served_recipe, ["retrieval.alpha=10", "retrieval.preranker=history"])
    retriever = Retriever.load(config.model_dir("index"), config.retrieval)
    assert "keeps by head-score and sorts by head-score, and so do its answers; the recipe says history" in caplog.text
    assert (retriever.defaults.alpha, retriever.defaults.preranker) == (10, "head-score")
    assert type(retriever.preranker).__name__ == "HeadScorePreranker"
