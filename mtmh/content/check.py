"""Checks the teacher before anything is distilled from it: does similarity of content mean the same topic?

Topics are labels for this check alone: no teacher is trained on them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from rich.table import Table

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import Config, ContentCheckConfig, ContentConfig, EncoderConfig, decisive
from mtmh.content.catalogue import ContentEmbedder
from mtmh.content.check_metrics import Agreement, agreement
from mtmh.content.check_report import write_check_report
from mtmh.content.concepts import open_concepts
from mtmh.content.shards import progress_bar
from mtmh.content.teacher import (
    ContentFiles,
    Teacher,
    build_teacher,
    catalogue_words,
    encoder_config,
    open_teacher,
)
from mtmh.data.arrays import Items, Vectors, unit_rows
from mtmh.data.content_store import open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.data.randomness import Purpose, generator
from mtmh.distributed.ranks import join_ranks
from mtmh.training.content import principal_directions

CHECK_METRICS = Path("metrics.json")
CHECK_REPORT = Path("report.html")
LEVELS = ("topic_l1", "topic_l2")


def check_content(config: Config, out: Path) -> Artifact:
    """Compares the recipe's teacher with topics on a labelled sample.

    A trained encoder is compared fused, by text alone, by image alone, and before its training, all on the same
    items: those that have every modality the encoder takes. Any other teacher is compared as its content artifact is.

    Args:
        config: the recipe; its dataset must have topics, and the encoder or the content embeddings must exist.
        out: a ``check`` artifact: ``metrics.json`` and ``report.html``; the summary's ``failures`` lists the gates of
            ``content.check`` that the teacher misses.

    Raises:
        ValueError: no topics, no teacher, or too few items.
    """
    dataset = open_dataset(config.dataset_dir)
    settings = config.content.check
    items, topics = _sample(dataset, settings.num_items, config.seed)
    inputs = {"dataset": dataset.artifact}
    if config.content.kind == "encoder":
        inputs["encoder"] = open_artifact(config.encoder_dir, "encoder")
        embeddings, kept = _embed_by_modality(
            config.content,
            ContentFiles.find(encoder_config(config.content), config.media_dir),
            config.encoder_dir,
            config.seed,
            dataset,
            items,
            config.training.device,
        )
    else:
        content = open_content(config.content_dir, dataset)
        inputs["content"] = content.artifact
        rows = content.gather(items).float().numpy()
        kept = (rows != 0.0).any(axis=1)
        embeddings = {"teacher": rows}
        directions = principal_directions(content, config.loss.teacher_dim, config.seed)
        if directions is not None:
            embeddings[f"in {directions.shape[1]} directions"] = unit_rows(rows @ directions)
    topics = {level: numbers[kept] for level, numbers in topics.items()}
    found = [agreement(name, rows[kept], topics, settings.k, settings.num_bins) for name, rows in embeddings.items()]
    facts = {
        "recipe": config.name,
        "source": dataset.summary.source,
        "num_items": int(kept.sum()),
        "num_items_without_all_content": int((~kept).sum()),
        "rows": [row.model_dump(mode="json") for row in found],
        "failures": _failures(found[0], settings),
    }
    with write_artifact(
        out, "check", config=config.model_dump(mode="json"), decisive=decisive(config, "check"), inputs=inputs
    ) as writer:
        (writer.folder / CHECK_METRICS).write_text(json.dumps(facts, indent=2))
        write_check_report(facts, found, *check_figures(found), path=writer.folder / CHECK_REPORT)
        writer.summary |= {name: value for name, value in facts.items() if name != "rows"}
    return open_artifact(out, "check")


def check_table(artifact: Artifact) -> Table:
    """The figures of a check, for a terminal."""
    facts = json.loads((artifact.path / CHECK_METRICS).read_text())
    found = [Agreement.model_validate(row) for row in facts["rows"]]
    table = Table(title=f"{facts['recipe']}: teacher against topics, {facts['num_items']:,} items of {facts['source']}")
    heads, rows = check_figures(found)
    table.add_column("")
    for head in heads:
        table.add_column(head, justify="right")
    for row, values in zip(found, rows, strict=True):
        table.add_row(row.name, *values)
    return table


def check_figures(found: Sequence[Agreement]) -> tuple[list[str], list[list[str]]]:
    """Column heads, and the figures of each row."""
    heads = [f"AUC {_short(level)}" for level in found[0].auc]
    heads += [f"P@{k} {_short(level)}" for level, of_k in found[0].precision.items() for k in of_k]
    rows = [
        [
            *(f"{value:.4f}" for value in row.auc.values()),
            *(f"{value:.4f}" for of_k in row.precision.values() for value in of_k.values()),
        ]
        for row in found
    ]
    return heads, rows


def _short(level: str) -> str:
    return level.removeprefix("topic_").upper()


def _sample(dataset: Dataset, num_items: int, seed: int) -> tuple[Items, dict[str, npt.NDArray[np.int64]]]:
    """Items that have a topic at every level the dataset has, and the topics' numbers."""
    columns = dataset.items(list(LEVELS))
    levels = [level for level in LEVELS if columns.column(level).null_count < dataset.num_items]
    if not levels:
        raise ValueError(f"{dataset.artifact.path}: no item has a topic; the check needs labelled items")
    codes = {
        level: np.asarray(pc.fill_null(columns.column(level).combine_chunks().dictionary_encode().indices, -1))
        for level in levels
    }
    labelled = np.flatnonzero(np.all([numbers >= 0 for numbers in codes.values()], axis=0))
    draw = generator(Purpose.CHECK_SAMPLE, seed).permutation(len(labelled))[:num_items]
    items = np.sort(labelled[draw])
    return items, {level: numbers[items].astype(np.int64) for level, numbers in codes.items()}


def _embed_by_modality(
    content: ContentConfig,
    files: ContentFiles,
    encoder: Path,
    seed: int,
    dataset: Dataset,
    items: Items,
    device: Literal["auto", "cpu", "cuda"],
) -> tuple[dict[str, Vectors], npt.NDArray[np.bool_]]:
    """Embeddings of the items by what the encoder sees of them, and which items have all of it."""
    trained, untrained = open_teacher(encoder), _untrained(encoder_config(content), files, seed, dataset)
    seen = " and ".join(tower for tower in ("text", "image") if tower in trained.backbones)
    ways: list[tuple[str, Teacher, dict[str, bool]]] = [(seen, trained, {})]
    if seen == "text and image":
        ways += [("text alone", trained, {"use_image": False}), ("image alone", trained, {"use_text": False})]
    if untrained is not None:
        ways.append((f"untrained, {seen}", untrained, {}))
    embeddings: dict[str, Vectors] = {}
    kept = np.ones(len(items), bool)
    with join_ranks(device) as ranks, progress_bar(len(items) * len(ways), shown=True) as advance:
        for name, teacher, hidden in ways:
            reader = teacher.reader(dataset, files.images, content.max_tokens)
            embedder = ContentEmbedder(teacher.model.to(ranks.device), reader, content, ranks.device)
            embedded = embedder.embed(items, advance, **hidden)
            embeddings[name] = embedded.rows
            kept &= embedded.complete
    return embeddings, kept


def _untrained(encoder: EncoderConfig, files: ContentFiles, seed: int, dataset: Dataset) -> Teacher | None:
    """The encoder as its training found it; ``None`` without the concepts, which give some tokenizers their words."""
    if files.concepts is None:
        return None
    concepts = open_concepts(dataset, files.concepts, encoder.training.source_weights)
    return build_teacher(encoder, seed, catalogue_words(dataset, concepts.texts))


def _failures(row: Agreement, settings: ContentCheckConfig) -> list[str]:
    """Limits of the recipe that the teacher does not reach."""
    k = settings.k[0]
    gates: list[tuple[str, str, Mapping[str, Any]]] = [
        ("min_auc", "ROC AUC", row.auc),
        ("min_precision", f"precision@{k}", {level: of_k[k] for level, of_k in row.precision.items()}),
    ]
    failures = []
    for gate, what, reached in gates:
        for level in LEVELS:
            setting = f"{gate}_{level.removeprefix('topic_')}"
            least = getattr(settings, setting)
            if least is None:
                continue
            value = reached.get(level)
            if value is None:
                failures.append(f"content.check.{setting} is {least}, but the dataset has no {level}")
            elif value < least:
                failures.append(
                    f"{what} of {row.name} at {level} is {value:.4f}, below content.check.{setting} = {least}"
                )
    return failures
