"""Verbs of the teacher: mtmh content simulate, train, check, embed."""

from __future__ import annotations

import typer
from rich.console import Console

from mtmh.cli.options import Out, Overrides, Recipe, done

content_app = typer.Typer(no_args_is_help=True, help="The teacher: content embeddings of the catalogue.")


@content_app.command("simulate")
def content_simulate(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Draws pictures and concepts for a simulated catalogue."""
    from mtmh.config import load_config
    from mtmh.prepare.sources.synthetic_media import write_media

    config = load_config(recipe, overrides)
    done("media", write_media(config, out or config.media_dir).path)


@content_app.command("train")
def content_train(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Trains the content encoder against concepts; alone, or as one rank of torchrun. Goes on where it was killed."""
    from mtmh.config import load_config
    from mtmh.content.train import train_content

    config = load_config(recipe, overrides)
    done("content encoder", train_content(config, out or config.encoder_dir).path)


@content_app.command("check")
def content_check(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Measures how well the teacher tells topics apart; exit code 1 if it misses a gate of the recipe."""
    from mtmh.config import load_config
    from mtmh.content.check import check_content, check_table

    config = load_config(recipe, overrides)
    artifact = check_content(config, out or config.paths.root / "content-check")
    Console().print(check_table(artifact))
    done("report", artifact.path / "report.html")
    for failure in artifact.summary["failures"]:
        Console(stderr=True).print(f"[red]missed[/red]: {failure}", highlight=False, soft_wrap=True)
    if artifact.summary["failures"]:
        raise typer.Exit(1)


@content_app.command("embed")
def content_embed(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Embeds every item of the catalogue with the frozen teacher."""
    from mtmh.config import load_config
    from mtmh.content.embed import embed_content

    config = load_config(recipe, overrides)
    done("content embeddings", embed_content(config, out or config.content_dir).path)
