"""Arguments that verbs share, and the lines that they print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Recipe = Annotated[str, typer.Argument(help="A recipe that ships with mtmh (see `mtmh recipes`), or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes one setting of the recipe; repeatable.")
]
Out = Annotated[Path | None, typer.Option(help="Where the artifact goes; default: the recipe's folder for it.")]


def speaks() -> bool:
    """True for the one rank of torchrun that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """Prints a line, on the rank that speaks."""
    if speaks():
        Console().print(line, highlight=False, soft_wrap=True)


def done(what: str, where: Path) -> None:
    """Says what was written and where."""
    say(f"[green]wrote[/green] {what}: {where}")
