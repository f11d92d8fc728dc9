"""Verbs about the installation and its recipes: mtmh doctor, recipes, show."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from mtmh.cli.options import Overrides, Recipe


def doctor() -> None:
    """Checks that the installed packages belong together and compute."""
    from mtmh.cli.doctor import examine_installation, report

    if not report(examine_installation(), Console()):
        raise typer.Exit(1)


def recipes() -> None:
    """Lists the recipes that ship with mtmh."""
    from rich.table import Table

    from mtmh.config import load_config, recipe_names

    table = Table.grid(padding=(0, 2))
    for name in recipe_names():
        table.add_row(name, load_config(name).description)
    Console().print(table, highlight=False)


def show(
    recipe: Recipe,
    overrides: Overrides = None,
    explain: Annotated[bool, typer.Option("--explain", help="Says above each setting what it does.")] = False,
) -> None:
    """Prints a recipe with every setting, defaults included."""
    import yaml

    from mtmh.config import load_config

    config = load_config(recipe, overrides)
    tree = config.model_dump(mode="json")
    if explain:
        from mtmh.config.descriptions import explained

        typer.echo("\n".join(explained(tree)))
        return
    # Not through Rich, which would break lines and read [..] as markup: the output is a recipe again.
    typer.echo(yaml.safe_dump(tree, sort_keys=False), nl=False)
