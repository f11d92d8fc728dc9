"""The verb that measures the papers' tables anew: mtmh reproduce."""

from __future__ import annotations

from typing import Annotated

import typer

from mtmh.cli.options import Overrides, Recipe, done, say


def reproduce(
    recipe: Recipe,
    only: Annotated[
        list[str] | None, typer.Option(help="A table or figure, or several with commas between; repeatable.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Seeds of training, all that the page is to show: 0,1,2. Those done are not done again.")
    ] = "0",
    without: Annotated[list[str] | None, typer.Option(help="A model of a table to leave out; repeatable.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: half an hour on two cores.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Models trained at the same time, one thread each if above 1.")] = 1,
    overrides: Overrides = None,
) -> None:
    """Measures the papers' tables and figures, baselines included, and writes one page with theirs beside ours."""
    from mtmh.papers.models import PARTS, check_names
    from mtmh.papers.reproduce import reproduce as run

    named = [word for option in only or [] for word in option.replace(",", " ").split()]
    unknown = [name for name in named if name not in PARTS]
    if unknown:
        raise ValueError(f"--only {unknown[0]}: no such table or figure; expected of {', '.join(PARTS)}")
    numbers = seeds.replace(",", " ").split()
    if not numbers or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"--seeds {seeds!r}: expected whole numbers with commas between them")
    check_names(without or [])
    parts = [part for part in PARTS if part in named]
    page = run(
        recipe,
        parts,
        sorted(set(map(int, numbers))),
        say,
        without=without or [],
        quick=quick,
        jobs=jobs,
        overrides=overrides or [],
    )
    done("page", page)
