"""Writes the preranker artifact: every item's vector, the user tower, and what the tasks are worth on T2."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from safetensors.torch import save_model

from mtmh.artifacts import Artifact, link_file, link_folder, open_artifact, write_artifact
from mtmh.config import Config, PrerankerConfig, decisive
from mtmh.data.dataset import open_dataset
from mtmh.data.item_vectors import ItemVectors
from mtmh.data.row_file import create_array
from mtmh.data.validation import ValidationDataset
from mtmh.modules.combination import Combination
from mtmh.modules.preranker import Preranker
from mtmh.preranking.artifact import (
    COMBINATION,
    COOCCURRENCE,
    LINEAR,
    POPULARITY,
    USER_TOWER,
    VECTORS,
    PrerankerSummary,
    TaskQuality,
    TaskSummary,
)
from mtmh.preranking.forward import UserQueries
from mtmh.preranking.held_back import embedded_by, model_without_end
from mtmh.preranking.inputs import ItemInputs, open_inputs
from mtmh.preranking.item_tower import write_item_tower
from mtmh.preranking.labels import Labels
from mtmh.preranking.model_builder import load_preranker
from mtmh.preranking.neighbours import cosine_neighbours, engagements, item_popularity, linear_neighbours
from mtmh.preranking.quality import measure, questions
from mtmh.preranking.scorer import Scorer, read_summary
from mtmh.preranking.stacking import fit_combination, judged_candidates
from mtmh.preranking.user_ranker import UserRanker
from mtmh.tower.artifact import TOWER
from mtmh.training.newest import VALIDATION, latest_checkpoint

_CHUNK_ITEMS = 8192


def write_preranker(config: Config, out: Path) -> Artifact:
    """Writes the preranker artifact of the newest checkpoint: all that scores items, new ones included.

    Args:
        config: names dataset, embeddings and the preranker's checkpoints.
        out: folder of the artifact.

    Raises:
        ValueError: an input is missing, or the checkpoint is of another dataset or of other embeddings.
    """
    dataset = open_dataset(config.dataset_dir)
    settings = config.preranker
    embeddings = config.model_dir("embeddings") if settings.head_embeddings else None
    inputs, artifacts = open_inputs(dataset, embeddings)
    checkpoint = _checkpoint(config.preranker_checkpoints, artifacts)
    labels = Labels(settings.tasks, dataset.summary)
    model = load_preranker(checkpoint.path)
    tasks = [
        TaskSummary(
            name=task.name, label=None if task.is_engagement else labels.names.index(task.name), weight=task.weight
        )
        for task in settings.tasks
    ]
    artifacts = artifacts | {"checkpoint": checkpoint}
    with write_artifact(
        out,
        "preranker",
        config=config.model_dump(mode="json"),
        inputs=artifacts,
        decisive=decisive(config, "preranker"),
    ) as writer:
        vectors = write_items(model, inputs, dataset.num_items, writer.folder)
        save_model(model.user_tower, str(writer.folder / USER_TOWER))
        write_item_tower(writer.folder, config.index.tower, dataset, checkpoint)
        scorer = Scorer(vectors, UserQueries.of(model.user_tower), tasks, settings.history_length)
        engaged = engagements(dataset.history_reader(), dataset.num_items)
        cosine_neighbours(engaged, settings.neighbours).save(writer.folder / COOCCURRENCE)
        linear_neighbours(engaged, settings.neighbours, settings.linear_items).save(writer.folder / LINEAR)
        np.save(writer.folder / POPULARITY, item_popularity(dataset.history_reader(), dataset.num_items))
        view = ValidationDataset(dataset, config.validation, config.seed)
        held_back = _held_back_embeddings(config.model_dir("checkpoints"), embeddings, config.held_back_embeddings)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            judge, heads = held_back_scorer(
                settings, view, config.preranker_checkpoints / VALIDATION, held_back, tasks, Path(folder)
            )
            combination, weights = learned_combination(settings, view, judge, heads, config.seed)
        save_model(combination, str(writer.folder / COMBINATION))
        writer.summary |= PrerankerSummary(
            num_items=dataset.num_items,
            dim=settings.dim,
            temperature=settings.temperature,
            hidden=settings.hidden,
            history_length=settings.history_length,
            prior=checkpoint.summary["preranker"]["prior"],
            heads=inputs.heads,
            tasks=tasks,
            quality=measure(scorer, questions(settings, dataset, labels, config.seed)),
            combination_hidden=settings.combination_hidden,
            weights=weights,
        ).model_dump()
    return open_artifact(out, "preranker")


@torch.inference_mode()
def write_items(model: Preranker, inputs: ItemInputs, num_items: int, folder: Path) -> npt.NDArray[np.float32]:
    """Runs the catalogue through the item tower in chunks; no process memory grows with the catalogue.

    Returns:
        vectors [I, D + K], memory-mapped.
    """
    shape = (num_items, model.dim + len(model.user_tower.mix))
    file = create_array(folder / VECTORS, np.float32, shape)
    for start in range(0, num_items, _CHUNK_ITEMS):
        end = min(start + _CHUNK_ITEMS, num_items)
        rows = model(*inputs.gather(np.arange(start, end)))
        if not torch.isfinite(rows).all():
            raise ValueError(f"preranker: vectors of items {start} to {end - 1} are not finite numbers")
        file[start:end] = rows.numpy()
    file.flush()
    return file


def learned_combination(
    settings: PrerankerConfig, view: ValidationDataset, scorer: Scorer, heads: Mapping[str, ItemVectors], seed: int
) -> tuple[Combination, dict[str, float]]:
    """The combination of evidence, learned on the end of T1, and the weight of each kind in its linear part.

    ``scorer`` and ``heads`` are those of models that have not seen that end (`held_back_scorer`).
    """
    judged = judged_candidates(settings, view, scorer, heads, seed)
    combination = fit_combination(judged, settings.combination_hidden, seed)
    weights = combination.linear.weight.detach()[0].tolist()
    return combination, dict(zip(judged.names, weights, strict=True))


def held_back_scorer(
    settings: PrerankerConfig,
    view: ValidationDataset,
    checkpoints: Path,
    embeddings: Path | None,
    tasks: list[TaskSummary],
    folder: Path,
) -> tuple[Scorer, Mapping[str, ItemVectors]]:
    """The preranker that has not seen the end of T1, and the embeddings of the heads that it takes.

    Args:
        settings: of the preranker.
        view: without the end of T1.
        checkpoints: of this preranker.
        embeddings: folder of those that it was trained with, if any.
        tasks: of the score.
        folder: where the vectors of the items go.

    Raises:
        ValueError: it has not been trained, or on other inputs.
    """
    inputs, artifacts = open_inputs(view, embeddings)
    model = load_preranker(_checkpoint(checkpoints, artifacts).path)
    vectors = write_items(model, inputs, view.num_items, folder)
    return Scorer(vectors, UserQueries.of(model.user_tower), tasks, settings.history_length), inputs.vectors


def _held_back_embeddings(checkpoints: Path, embeddings: Path | None, held_back: Path) -> Path | None:
    """As training found them."""
    checkpoint = embeddings and model_without_end(checkpoints, embeddings)
    return held_back if checkpoint and embedded_by(held_back, checkpoint) else embeddings


def _checkpoint(root: Path, inputs: Mapping[str, Artifact]) -> Artifact:
    """The newest one, which must have been trained on these inputs."""
    checkpoint = open_artifact(latest_checkpoint(root), "checkpoint")
    for name, artifact in inputs.items():
        if checkpoint.manifest.inputs.get(name) != artifact.manifest.digest:
            raise ValueError(f"{checkpoint.path}: trained on another {name} artifact than {artifact.path}; train again")
    return checkpoint


def write_rows(ranker: UserRanker, source: Path, rows: npt.NDArray[np.integer[Any]], out: Path) -> Artifact:
    """Writes the preranker artifact of other items: some of those of another one, and of those added to it since.

    Args:
        ranker: over the items of ``source``, and the added ones.
        source: folder of the other artifact; all but the vectors is linked from there.
        rows: [N] the items to keep, in their new order.
        out: folder of the artifact.
    """
    base = open_artifact(source, "preranker")
    with write_artifact(out, "preranker", config=base.manifest.config, inputs={"preranker": base}) as writer:
        shape = (len(rows), ranker.scorer.vectors.shape[1])
        vectors = create_array(writer.folder / VECTORS, np.float32, shape)
        for start in range(0, len(rows), _CHUNK_ITEMS):
            part = slice(start, start + _CHUNK_ITEMS)
            vectors[part] = ranker.scorer.vectors[rows[part]]
        vectors.flush()
        ranker.evidence.cosines.taken(rows).save(writer.folder / COOCCURRENCE)
        ranker.evidence.linear.taken(rows).save(writer.folder / LINEAR)
        np.save(writer.folder / POPULARITY, ranker.evidence.popularity[rows])
        for name in (USER_TOWER, COMBINATION):
            link_file(source / name, writer.folder / name)
        link_folder(source / TOWER, writer.folder / TOWER)
        writer.summary |= read_summary(base).model_copy(update={"num_items": len(rows)}).model_dump()
    return open_artifact(out, "preranker")


def quality_table(quality: dict[str, TaskQuality]) -> Table:
    """AUC and normalised entropy of the tasks, for the terminal."""
    table = Table(
        title="Tasks on T2, from histories of T1",
        caption="NE: normalised entropy, below 1 is better than the mean; engaged: among T2 items alone",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("task")
    for heading in ("AUC", "NE", "rate", "engaged AUC", "engaged NE", "engaged rate"):
        table.add_column(heading, justify="right")
    for name, task in quality.items():
        figures = (
            task.auc, task.normalized_entropy, task.rate,
            task.engaged_auc, task.engaged_normalized_entropy, task.engaged_rate,
        )  # fmt: skip
        table.add_row(name, *("–" if figure is None else f"{figure:.4f}" for figure in figures))
    return table
