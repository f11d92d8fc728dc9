"""The verb of the learned preranker."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from mtmh.cli.options import Out, Overrides, Recipe, done, speaks


def train_preranker(
    recipe: Recipe,
    out: Out = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of this preranker.")] = True,
) -> None:
    """Trains the user-to-item preranker and measures its tasks on T2; alone, or as one rank of torchrun."""
    from mtmh.cli.ignored_settings import load_for

    config = load_for("train_preranker", recipe, overrides)
    from mtmh.preranking.export import quality_table, write_preranker
    from mtmh.preranking.scorer import read_summary
    from mtmh.preranking.trainer import train_preranker as run

    run(config, resume=resume)
    if not speaks():  # one rank writes for all
        return
    artifact = write_preranker(config, out or config.model_dir("preranker"))
    Console().print(quality_table(read_summary(artifact).quality))
    done("preranker", artifact.path)
