"""The verb that runs all others: mtmh chain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mtmh.cli.options import Overrides, Recipe, done


def chain(
    recipe: Recipe,
    scheduler: Annotated[str, typer.Option(help="local_cwd, slurm, kubernetes or another of TorchX's.")] = "local_cwd",
    cfg: Annotated[str, typer.Option(help="Settings of the scheduler: partition=gpu,time=60.")] = "",
    continue_from: Annotated[
        Path | None, typer.Option(help="Checkpoint of the period before, whose model training starts from.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Says what would run and why; starts nothing.")] = False,
    overrides: Overrides = None,
) -> None:
    """Runs every stage whose inputs, settings or code changed, checks gates, and publishes the index.

    Ends with exit code 1 if a gate or a job failed, with 130 if it was cancelled.
    """
    from mtmh.chain.record import PAGE
    from mtmh.chain.run import plan_chain, run_chain
    from mtmh.config import load_config

    console = Console()
    if dry_run:
        for stage, result, reasons in plan_chain(load_config(recipe, overrides), continue_from):
            shown = "runs" if result == "waiting" else result
            why = f": {'; '.join(reasons)}" if reasons else ""
            console.print(f"{stage:17} {shown}{why}", highlight=False, soft_wrap=True, markup=False)
        return

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    record, folder = run_chain(recipe, overrides or [], scheduler, cfg, say, continue_from)
    done("page", folder / PAGE)
    if record.outcome == "cancelled":
        raise typer.Exit(130)
    if record.outcome in ("stopped", "failed"):
        raise typer.Exit(1)
