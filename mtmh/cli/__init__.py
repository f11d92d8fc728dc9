"""The command line: one verb a stage. Verbs import what they need, so that each starts fast."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from mtmh import __version__
from mtmh.cli import about, preranker, stages
from mtmh.cli.artifact import artifact_app
from mtmh.cli.chain import chain
from mtmh.cli.content import content_app
from mtmh.cli.errors import describe
from mtmh.cli.index import index_app
from mtmh.cli.reproduce import reproduce
from mtmh.cli.serving import serve
from mtmh.cli.similar_items import similar_items
from mtmh.cli.start import init, run
from mtmh.cli.tune import tune

app = typer.Typer(pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def mtmh(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Prints the version.")] = False
) -> None:
    """Item-to-item retrieval. Start with `mtmh init EVENTS ITEMS`, then `mtmh run` and `mtmh serve`."""
    if version:
        typer.echo(f"mtmh {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command()(init)
app.command()(run)
app.command()(stages.prepare)
app.add_typer(content_app, name="content")
app.command()(stages.train)
app.command()(tune)
app.command()(stages.plan)
app.command()(stages.embed)
app.command("build-index")(stages.build_index)
app.add_typer(index_app, name="index")
app.command("train-preranker")(preranker.train_preranker)
app.command()(stages.retrieve)
app.command("similar-items")(similar_items)
app.command()(serve)
app.command()(stages.evaluate)
app.command()(stages.report)
app.command()(reproduce)
app.command()(chain)
app.add_typer(artifact_app, name="artifact")
app.command()(about.doctor)
app.command()(about.recipes)
app.command()(about.show)


class _Lines(logging.Formatter):
    """``warning: what is wrong``, as errors are shown."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def main() -> None:
    """Runs the command line; an error that the user can mend ends in one line and exit code 2."""
    # OpenMP threads spin at the end of a parallel region; where another process holds the core they wait for, a step
    # takes many times as long. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A crash inside a library ends in the lines of Python that called it, not in silence.
    faulthandler.enable()
    # Importing torchrec makes torch.fx warn about an API that this program does not call.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    # Ours are for the user: a word and the message, whatever a library has set up for the root.
    ours = logging.getLogger("mtmh")
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    ours.addHandler(handler)
    ours.propagate = False
    try:
        app()
    except Exception as error:
        line = describe(error)
        if line is None:
            raise
        Console(stderr=True).print(f"error: {line}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)
