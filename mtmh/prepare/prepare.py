"""From raw logs to a dataset artifact: an adapter names two tables, the same SQL for every source does the rest.

The cut between T1 (training) and T2 (test) is a wall: vocabularies, counts, statistics, histories and the order of
items and users are functions of T1 and of the items table alone. Items that appear only later stay in the catalogue
as *fresh* items.

Memory is bounded whatever the number of events: DuckDB holds the working tables in a file beside the output and
spills beyond ``data.memory_limit_gb``; whatever needs the order of events runs over bounded ranges of users. Where one
machine does not suffice, Spark runs the same statements (``data.engine``) and the dataset is the same, byte for byte.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import Config, decisive
from mtmh.prepare.scratch import open_workspace
from mtmh.prepare.steps import (
    find_cutoff,
    load_events,
    load_items,
    open_source,
    split_events,
    write_item_files,
    write_user_files,
)


def prepare(config: Config, out: Path) -> Artifact:
    """Writes the dataset artifact of a recipe to ``out``, whole or not at all.

    Every row that is left out is counted by its reason: ``summary["dropped_events"]``, ``summary["dropped_items"]``.
    An event whose item is that of the same user's event before it is a repeat and left out; later returns to an item
    stay. ``min_item_events``, then ``min_user_events`` apply to T1, once each; T2 keeps all items, fresh ones too.

    Args:
        config: the recipe; ``data`` and ``seed`` matter here.
        out: the artifact's folder; an older dataset there is replaced.

    Raises:
        ValueError: the input does not fit (missing column, wrong type, duplicate item id, broken file, nothing left);
            the message names the file or setting and what was expected.

    Example:
        >>> from mtmh.config import load_config
        >>> artifact = prepare(load_config("synthetic"), Path("runs/synthetic/dataset"))  # doctest: +SKIP
        >>> artifact.summary["num_items"]  # doctest: +SKIP
    """
    with write_artifact(
        out, "dataset", config=config.model_dump(mode="json"), decisive=decisive(config, "dataset")
    ) as writer:
        scratch = writer.folder / "scratch"
        scratch.mkdir()
        with open_workspace(config.data, config.seed, writer.folder, scratch) as work:
            source = open_source(work)
            embedding_dim = load_items(work, source)
            columns = load_events(work, source)
            cutoff = find_cutoff(work, source, columns)
            split = split_events(work, source, columns, cutoff)
            histories = write_user_files(work, source, split)
            summary = write_item_files(work, source, histories, cutoff, embedding_dim)
            writer.summary = summary.model_dump(mode="json")
        shutil.rmtree(scratch)
    return open_artifact(out, "dataset")
