"""The verbs that a newcomer starts with: mtmh init and run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mtmh.cli.options import Overrides, Recipe, done


def init(
    events: Annotated[Path, typer.Argument(help="Events: a Parquet or CSV file, a folder of them or a pattern.")],
    items: Annotated[Path | None, typer.Argument(help="Items, likewise; without: what events say of them.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("mine.yaml"),
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=NAME", help="Names a column instead of guessing; repeatable: user_id=customer."),
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="auto, none, or a model as content.model of a recipe takes it.")
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replaces the recipe if there is one.")] = False,
) -> None:
    """Looks at two tables, guesses columns, features, split and teacher, and writes a recipe."""
    from rich.table import Table

    from mtmh.config import load_config
    from mtmh.start.guess import guess_recipe
    from mtmh.start.recipe import recipe_text

    if out.exists() and not force:
        raise ValueError(f"{out}: there already; give another --out, or --force to replace it")
    guess = guess_recipe(events, items, _roles(column or []), None if teacher == "none" else teacher)
    text = recipe_text(guess, root=f"runs/{out.stem}", description=f"Made by mtmh init from {events.name}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    load_config(out)  # what was written is a recipe
    table = Table.grid(padding=(0, 2))
    for label, assumed in guess.assumed:
        table.add_row(label, escape(assumed))
    console = Console()
    console.print("Assumed:", table, highlight=False)
    done("recipe", out)
    console.print(f"next: mtmh run {out}", highlight=False, soft_wrap=True, markup=False)


def run(recipe: Recipe, overrides: Overrides = None) -> None:
    """Does all that a recipe asks for, from the tables to the report; skips what is unchanged.

    Runs in this process. `mtmh chain` runs the same stages as jobs, on a cluster too, and keeps a model that got worse
    from being published.
    """
    from mtmh.config import load_config
    from mtmh.evaluation.results import REPORT, load_evaluation
    from mtmh.evaluation.tables import results_table
    from mtmh.evaluation.verdict import verdict
    from mtmh.start.run import run_stages

    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    found = run_stages(load_config(recipe, overrides), say)["evaluate"].path
    evaluation = load_evaluation(found)
    console.print(results_table([evaluation]))
    done("report", found / REPORT)
    for line in [*evaluation.notes, *verdict(evaluation)]:
        console.print(escape(line), highlight=False)
    again = [word for override in overrides or [] for word in ("--set", override)]
    say(f"next: {shlex.join(['mtmh', 'serve', recipe, *again])}")


def _roles(words: list[str]) -> dict[str, str | list[str] | None]:
    """``ROLE=NAME`` each; several names stand with commas between them, and none means that there is no such column."""
    roles: dict[str, str | list[str] | None] = {}
    for word in words:
        role, separator, names = word.partition("=")
        if not separator:
            raise ValueError(f"--column {word}: expected ROLE=NAME, such as user_id=customer")
        several = role in ("text", "id_features", "float_features")
        roles[role] = [name for name in names.split(",") if name] if several else names or None
    return roles
