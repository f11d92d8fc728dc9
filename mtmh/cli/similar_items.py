"""The verb that writes the answers of all items: mtmh similar-items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtmh.cli.options import Out, Overrides, Recipe, done


def similar_items(
    recipe: Recipe,
    out: Out = None,
    k: Annotated[int | None, typer.Option(help="Answers an item; default: retrieval.k.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Percent from the engagement head.")] = None,
    items: Annotated[Path | None, typer.Option(help="Text file of item ids, a line each; default: all items.")] = None,
    shard_items: Annotated[int, typer.Option(min=1, help="Items a file.")] = 50_000,
    overrides: Overrides = None,
) -> None:
    """Writes the answers of every item as Parquet, for a key-value store; alone, or as one rank of torchrun.

    Goes on where it was killed.
    """
    from mtmh.artifacts import open_artifact
    from mtmh.cli.ignored_settings import load_for
    from mtmh.index.versions import current_version
    from mtmh.live.live_index import LiveIndex
    from mtmh.retrieval.similar_items import write_similar_items

    config = load_for("evaluate", recipe, overrides)
    folder = config.model_dir("index")
    retriever = LiveIndex(folder, config.retrieval, config.index.milvus).retriever
    index = open_artifact(current_version(folder), "index")
    ids = None if items is None else items.read_text().split("\n")
    wanted = None if ids is None else [item.strip() for item in ids if item.strip()]
    where = out or config.model_dir("similar-items")
    made = write_similar_items(config, retriever, index, where, k=k, alpha=alpha, items=wanted, shard_items=shard_items)
    done(f"the {made.summary['k']} similar items of {made.summary['num_items']:,} items", made.path)
