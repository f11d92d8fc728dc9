"""The verb that serves a recipe over HTTP: mtmh serve."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mtmh.cli.options import Overrides, Recipe


def serve(
    recipe: Recipe,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0: all. Default: this machine only.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0: a free one.")] = None,
    overrides: Overrides = None,
) -> None:
    """Answers over HTTP from the published index; the explorer page is at /."""
    from mtmh.cli.ignored_settings import load_for

    given = {"host": host, "port": port}
    settings = [f"service.{name}={value}" for name, value in given.items() if value is not None]
    config = load_for("evaluate", recipe, [*(overrides or []), *settings])
    # NumPy's linear algebra reads it when it is imported, and only then.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(config.service.search_threads))
    from mtmh.serving.server import serve as run

    run(config)
