"""Models of the papers that are no tower of ours, as item embeddings that are indexed and evaluated like any.

    python -m mtmh.papers.vectors hstu synthetic+paper --set name=hstu

``hstu``, ``sasrec``: the item embeddings of that sequence model. ``content``: the teacher's embeddings, the paper's
content-encoder model. ``mixture``: a mixture of logits, whose neighbours take the place of the index's. Dataset,
content embeddings and preranker must be there; what is there and unchanged is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mtmh.artifacts import Artifact, open_artifact, write_artifact
from mtmh.config import Config, decisive, load_config
from mtmh.data.content_store import open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.evaluation.evaluate import evaluate
from mtmh.index.build import build_version
from mtmh.index.versions import current_version
from mtmh.papers.mixture import MixtureSettings, Neighbours, mixture_identity, train_mixture
from mtmh.papers.models import Source
from mtmh.papers.sequence_model import SequenceSettings, train_sequence_model
from mtmh.tower.artifact import EmbeddingsSummary, vectors_file

HEAD = "engagement"


def main() -> None:
    """Parses the command line and brings the evaluation up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=get_args(Source))
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments = parser.parse_args()
    evaluate_vectors(arguments.source, load_config(arguments.recipe, arguments.overrides))


def evaluate_vectors(source: Source, config: Config) -> Artifact:
    """Makes embeddings, index and evaluation, as far as they are missing or outdated.

    Raises:
        ValueError: dataset, content embeddings or preranker are missing or do not fit.
    """
    dataset = open_dataset(config.dataset_dir)
    vectors = write_vectors(source, config, dataset)
    needed = {"embeddings": vectors.manifest.digest}
    if config.retrieval.needs_preranker:
        needed["preranker"] = open_artifact(config.model_dir("preranker"), "preranker").manifest.digest
    index = _current_index(config, needed) or build_version(config)
    found = config.model_dir("evaluation")
    digest = open_artifact(index, "index").manifest.digest
    made = _unchanged(found, "evaluation", {"index": digest}, decisive(config, "evaluation"))
    if made is not None:
        return made
    neighbours = Neighbours.read(vectors.path) if source == "mixture" else None
    return evaluate(config, found, search=None if neighbours is None else neighbours.search)


def write_vectors(source: Source, config: Config, dataset: Dataset) -> Artifact:
    """Writes an embeddings artifact of one head, unless it is there.

    Args:
        source: of the vectors.
        config: the recipe.
        dataset: of its items.
    """
    inputs, content = {"dataset": dataset.artifact}, None
    if source == "content" or (source == "mixture" and config.needs_content):
        content = open_content(config.content_dir, dataset)
        inputs["content"] = content.artifact
    sequence, mixture = None, MixtureSettings()
    settings: dict[str, Any] = {"source": source}
    if source == "mixture":
        settings |= asdict(mixture) | mixture_identity(config)
    elif source != "content":
        sequence = SequenceSettings(
            kind=source,
            dim=config.model.head_dim,
            num_negatives=config.loss.num_uniform_negatives,
            seed=config.training.seed_or(config.seed),
        )
        settings |= asdict(sequence)
    path = config.model_dir("embeddings")
    digests = {name: artifact.manifest.digest for name, artifact in inputs.items()}
    made = _unchanged(path, "embeddings", digests, settings)
    if made is not None:
        return made
    neighbours = None
    if sequence is not None:
        vectors = train_sequence_model(dataset, sequence)
    elif source == "mixture":
        vectors, neighbours = train_mixture(config, dataset, content, mixture)
    else:
        assert content is not None
        vectors = np.asarray(content.embeddings, np.float32)
    recipe = config.model_dump(mode="json")
    with write_artifact(path, "embeddings", config=recipe, inputs=inputs, decisive=settings) as writer:
        np.save(writer.folder / vectors_file(HEAD), vectors)
        if neighbours is not None:
            neighbours.write(writer.folder)
        summary = EmbeddingsSummary(heads=[HEAD], dim=vectors.shape[1], num_items=dataset.num_items)
        writer.summary |= summary.model_dump()
    return open_artifact(path, "embeddings")


def _current_index(config: Config, inputs: Mapping[str, str]) -> Path | None:
    try:
        path = current_version(config.model_dir("index"))
    except ValueError:
        return None
    return path if _unchanged(path, "index", inputs, decisive(config, "index")) is not None else None


def _unchanged(
    path: Path, kind: Literal["embeddings", "index", "evaluation"], inputs: Mapping[str, str], settings: dict[str, Any]
) -> Artifact | None:
    """The artifact if it is there and made from these inputs by these settings."""
    try:
        artifact = open_artifact(path, kind)
    except ValueError:
        return None
    same_inputs = all(artifact.manifest.inputs.get(name) == digest for name, digest in inputs.items())
    return artifact if same_inputs and artifact.manifest.decisive == settings else None


if __name__ == "__main__":
    main()
