"""Verbs about the installation and its recipes: mtmh doctor, recipes, show."""

from __future__ import annotations

import typer
from rich.console import Console

from mtmh.cli.options import Overrides, Recipe
from mtmh.config import Config, load_config


def doctor() -> None:
    """Checks that the installed packages belong together and compute."""
    from mtmh.doctor import examine, report

    if not report(examine(), Console()):
        raise typer.Exit(1)


def recipes() -> None:
    """Lists the recipes that ship with mtmh."""
    from mtmh.config import recipe_names

    for name in recipe_names():
        Console().print(f"{name:28} {load_config(name).description}", highlight=False)


def show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Prints a recipe with every setting, defaults included."""
    import yaml

    config: Config = load_config(recipe, overrides)
    Console().print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False)
