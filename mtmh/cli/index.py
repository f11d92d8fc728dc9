"""Verbs of the built index: mtmh index list, verify, publish, rollback, pull, add, remove, compact."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from mtmh.cli.options import Overrides, Recipe, done, say

index_app = typer.Typer(no_args_is_help=True, help="The published index: versions, fresh items.")

VersionName = Annotated[str, typer.Argument(help="A version, as `mtmh index list` shows it.")]


@index_app.command("list")
def list_versions(recipe: Recipe, overrides: Overrides = None) -> None:
    """Lists the versions on disk, the newest first."""
    from rich.table import Table

    from mtmh.config import load_config
    from mtmh.index.versions import list_versions as run

    table = Table("version", "state", "built (UTC)", "items", "ANN recall")
    for version in run(load_config(recipe, overrides).model_dir("index")):
        recall = ", ".join(f"{head} {value:.3f}" for head, value in (version.recall or {}).items())
        items = f"{version.num_items:,}" if version.num_items else ""
        table.add_row(version.name, version.state, _minute(version.created_at), items, recall)
    Console().print(table)


def _minute(instant: str) -> str:
    """``2026-11-28 08:15`` of an ISO time, UTC."""
    return f"{datetime.fromisoformat(instant).astimezone(UTC):%Y-%m-%d %H:%M}" if instant else ""


@index_app.command("verify")
def verify(
    recipe: Recipe,
    version: Annotated[str | None, typer.Argument(help="A version; default: the published one.")] = None,
    overrides: Overrides = None,
) -> None:
    """Compares every file of a version with its recorded checksum."""
    from mtmh.artifacts import open_artifact
    from mtmh.config import load_config
    from mtmh.index.versions import current_version, find_version

    index_dir = load_config(recipe, overrides).model_dir("index")
    folder = find_version(index_dir, version) if version else current_version(index_dir)
    artifact = open_artifact(folder, "index")
    artifact.verify()
    Console().print(f"{folder}: {len(artifact.manifest.files)} files as written", highlight=False, soft_wrap=True)


@index_app.command("publish")
def publish(recipe: Recipe, version: VersionName, overrides: Overrides = None) -> None:
    """Publishes a version that is on disk; exit code 1 if it misses the recall gate (`--set index.min_recall=...`)."""
    from mtmh.config import load_config
    from mtmh.index.versions import BelowGateError, find_version
    from mtmh.index.versions import publish as run

    config = load_config(recipe, overrides)
    folder, index = find_version(config.model_dir("index"), version), config.index
    try:
        published = run(folder, min_recall=index.min_recall, keep=index.keep_versions, milvus=index.milvus)
    except BelowGateError as error:
        missed_gate(error)
    done("published index", published)


@index_app.command("rollback")
def rollback(
    recipe: Recipe,
    to: Annotated[str | None, typer.Option(help="A version published before; default: the last one.")] = None,
    overrides: Overrides = None,
) -> None:
    """Publishes the version before the current one again."""
    from mtmh.config import load_config
    from mtmh.index.versions import find_version
    from mtmh.index.versions import rollback as run

    index_dir = load_config(recipe, overrides).model_dir("index")
    done("published index", run(index_dir, find_version(index_dir, to).name if to else None))


@index_app.command("pull")
def pull(
    recipe: Recipe,
    url: Annotated[str, typer.Argument(help="Where `mtmh artifact push` published versions.")],
    every: Annotated[float, typer.Option(min=0.0, help="Seconds between looks; 0: one look.")] = 0.0,
    overrides: Overrides = None,
) -> None:
    """Publishes here the version that is published on object storage; a running service takes it into use."""
    from mtmh.config import load_config
    from mtmh.index.pulled import pull_version
    from mtmh.index.versions import BelowGateError
    from mtmh.places import any_path

    config = load_config(recipe, overrides)
    index_dir, place, said = config.model_dir("index"), any_path(url), ""
    while True:
        try:
            published = pull_version(
                place,
                index_dir,
                min_recall=config.index.min_recall,
                keep=config.index.keep_versions,
                trusted_key=config.retrieval.trusted_key,
            )
            if published is not None:
                done("published index", published)
            elif not every:
                say(f"{index_dir}: as published at {url}")
            said = ""
        except (ValueError, OSError) as error:
            if not every and isinstance(error, BelowGateError):
                missed_gate(error)
            if not every:
                raise
            if str(error) != said:  # once, not at every look
                said = str(error)
                Console(stderr=True).print(f"[red]not pulled[/red]: {said}", highlight=False, soft_wrap=True)
        if not every:
            return
        time.sleep(every)


@index_app.command("add")
def add(
    recipe: Recipe,
    items: Annotated[Path, typer.Argument(help="New items: .parquet, .jsonl or .csv, one row an item.")],
    overrides: Overrides = None,
) -> None:
    """Embeds new items from their features and makes them answers, without a new build."""
    from mtmh.config import load_config
    from mtmh.content.fresh import open_fresh_content
    from mtmh.live.item_rows import read_rows
    from mtmh.live.live_index import LiveIndex

    config = load_config(recipe, overrides)
    live = LiveIndex(config.model_dir("index"), milvus=config.index.milvus)
    tower = live.retriever.tower
    rows = read_rows(items, tower.features.strings if tower is not None else ())
    content = None
    if tower is not None and tower.features.facts.content_dim and not all("content_embedding" in row for row in rows):
        content = open_fresh_content(
            config.content, config.content_dir, config.encoder_dir, config.media_dir, config.training.device
        )
    added = live.add(rows, content=content)
    Console().print(f"added {len(added)} items: index {live.retriever.version}", highlight=False)


@index_app.command("remove")
def remove(
    recipe: Recipe,
    ids: Annotated[list[str], typer.Argument(help="Ids of the items that shall be in no answer.")],
    overrides: Overrides = None,
) -> None:
    """Removes items from all answers, whatever version is published, until they are added again."""
    from mtmh.config import load_config
    from mtmh.live.live_index import LiveIndex

    config = load_config(recipe, overrides)
    live = LiveIndex(config.model_dir("index"), milvus=config.index.milvus)
    live.remove(ids)
    Console().print(f"removed {len(ids)} items: index {live.retriever.version}", highlight=False)


@index_app.command("compact")
def compact(recipe: Recipe, overrides: Overrides = None) -> None:
    """Builds a version out of the published one with all that was added and removed since, and publishes it."""
    from mtmh.config import load_config
    from mtmh.index.versions import BelowGateError
    from mtmh.live.compaction import compact as run

    config = load_config(recipe, overrides)
    try:
        done("published index", run(config))
    except BelowGateError as error:
        missed_gate(error)


def missed_gate(error: ValueError) -> NoReturn:
    """Says that an index missed the gate and ends the verb with exit code 1."""
    Console(stderr=True).print(f"[red]missed[/red]: {error}", highlight=False, soft_wrap=True)
    raise typer.Exit(1) from None
