"""Descriptions of settings: the page in docs is current, and a recipe with them is still a recipe."""

from __future__ import annotations

from pathlib import Path

import yaml

from mtmh.config import Config, load_config, recipe_names
from mtmh.config.base import leaves
from mtmh.config.descriptions import explained, sections, settings_page
from mtmh.config.yaml_reader import read_yaml

ROOT = Path(__file__).parents[2]


def test_the_page_in_docs_is_current() -> None:
    assert (ROOT / "docs/settings.md").read_text() == settings_page(), (
        "python -m mtmh.config.descriptions > docs/settings.md"
    )


def test_every_setting_of_the_recipes_is_on_the_page() -> None:
    known = {setting.key for section in sections() for setting in section.settings}
    groups = {section.key for section in sections()}
    for name in recipe_names():
        for key, _ in leaves(load_config(name).model_dump(mode="json")):
            above = [key, *(key.rsplit(".", level)[0] for level in range(1, key.count(".") + 1))]
            assert any(part in known or part in groups or f"{part}[]" in groups for part in above), key


def test_words_are_those_beside_the_field() -> None:
    found = {setting.key: setting for section in sections() for setting in section.settings}
    assert found["retrieval.alpha"].text == "share of the engagement head, percent"
    assert found["retrieval.alpha"].default == "50.0"
    assert found["retrieval.num_probes"].text.startswith("Clusters searched (C); an index records")
    assert found["retrieval.num_probes"].values == "integer or `auto`"
    assert found["loss.log_q"].values == "`counts`, `streaming`, `none`"
    assert found["training.learning_rate"].default == "0.3"
    assert found["name"].default == ""


def test_an_explained_recipe_is_the_same_recipe() -> None:
    tree = load_config("demo").model_dump(mode="json")
    lines = list(explained(tree))
    assert (
        "# A multi-task user-to-item model (``mtmh train-preranker``), trained on T1 by the settings of ``training``."
        in (lines)
    )
    assert read_yaml("\n".join(lines)) == yaml.safe_load(yaml.safe_dump(tree))
    assert Config.model_validate(read_yaml("\n".join(lines))) == load_config("demo")
