"""Several models on one page, and the verb that writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from small_world import make_model, make_world
from typer.testing import CliRunner

from mtmh.cli import app
from mtmh.config import Config
from mtmh.evaluation.comparison import Comparison
from mtmh.evaluation.evaluate import evaluate
from mtmh.evaluation.results import USERS, load_evaluation
from mtmh.evaluation.user_values import UserValues

HEADS = ["engagement", "relevance"]


@pytest.fixture
def models(tmp_path: Path) -> list[Config]:
    make_world(tmp_path)
    made = [make_model(tmp_path, name, HEADS, seed) for seed, name in enumerate(("red", "green", "blue"), 1)]
    for config in made:
        evaluate(config, config.model_dir("evaluation"))
    return made


def folders(models: list[Config]) -> list[Path]:
    return [config.model_dir("evaluation") for config in models]


def test_the_one_ahead_at_a_cut_off_is_named_with_the_paired_difference(models: list[Config]) -> None:
    found = Comparison.of(folders(models))
    recalls = {config.name: load_evaluation(config.model_dir("evaluation")).merged.recall for config in models}
    lines = found.verdict()
    for k in (2, 5, 15):
        best, second, gap = found.ahead[k]
        assert [best, second] == sorted(recalls, key=lambda name: recalls[name][k].value, reverse=True)[:2]
        assert gap is not None
        assert gap.recall[k].value == pytest.approx(recalls[best][k].value - recalls[second][k].value)
        ahead = gap.recall[k].low > 0
        assert (f"{best} is ahead" in lines[0]) or not ahead
        assert f"recall@{k}: {best} {100 * recalls[best][k].value:.2f} %, then {second}" in "\n".join(lines)
    users = [UserValues.read(folder / USERS) for folder in folders(models)]
    expected = np.mean(users[0].recall[15]) - np.mean(users[2].recall[15])
    assert found.differences["blue"].recall[15].value == pytest.approx(expected)


def test_a_model_compared_with_itself_is_level_and_has_a_name_of_its_own(models: list[Config]) -> None:
    folder = folders(models)[0]
    found = Comparison.of([folder, folder])
    assert found.verdict()[0] == "the best two are level at every cut-off."
    assert [evaluation.model for evaluation in found.evaluations] == [f"red ({folder})"] * 2
    with pytest.raises(ValueError, match="two models or more"):
        Comparison.of([folder])


def test_the_verb_takes_recipes_and_folders_and_writes_one_page(
    models: list[Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recipe = tmp_path / "green.yaml"
    recipe.write_text(yaml.safe_dump(models[1].model_dump(mode="json")))
    first, _, third = map(str, folders(models))
    done = CliRunner().invoke(app, ["report", "--compare", first, str(recipe), third], catch_exceptions=False)
    assert done.exit_code == 0
    page = (Path(first).parent / "comparison.html").read_text()
    assert all(f"{name}, merged, alpha = 50" in page for name in ("red", "green", "blue"))
    assert all(f"red − {name}" in page for name in ("green", "blue"))
    assert page.count("EASE") >= 1
    assert page.count("<h2>") >= 6
    assert "comparison: " in done.output
    table = done.output.partition("recall@2: ")[0]
    assert max(map(len, table.splitlines())) <= 80
    # Alone, a model's report is written anew, as evaluate wrote it.
    alone = CliRunner().invoke(app, ["report", third, "--out", str(tmp_path / "blue.html")], catch_exceptions=False)
    assert alone.exit_code == 0
    assert (tmp_path / "blue.html").read_text() == (Path(third) / "report.html").read_text()
