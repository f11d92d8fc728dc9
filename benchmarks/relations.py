"""Relations between items that are no topics, such as complements or citations: how many of them each head finds.

    python -m benchmarks.relations RECIPE --relation complements=A.parquet substitutes=B.parquet
    python -m benchmarks.relations RECIPE --relation citations=citations.parquet --k 10 100

A relation is a Parquet file of directed pairs, columns ``item`` and ``other``; pairs that stand in several of the files
are left out of all, unless ``--shared`` keeps them. For each item that has an embedding and a relation, its K nearest
items under each head (exactly), by the teacher, and by plain co-occurrence in T1; recall@K is the share of its related
items among them, of at most K. Means over items, half of a 95 % interval by bootstrap; differences are paired by item.
Relations are labels here and nothing else: no model has seen them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from mtmh.artifacts import MANIFEST, open_artifact
from mtmh.config import Config, load_config
from mtmh.data.content_store import open_content
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.evaluation.metrics import Bootstrap
from mtmh.index.vector_index import ExactIndex
from mtmh.preranking.neighbours import engagements
from mtmh.tower.artifact import EmbeddingsSummary, vectors_file

Pairs = npt.NDArray[np.int64]


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--relation", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--k", nargs="+", type=int, default=[10, 100])
    parser.add_argument("--shared", action="store_true", help="keep pairs that stand in several files")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    config = load_config(arguments.recipe, arguments.overrides)
    dataset = open_dataset(config.dataset_dir)
    relations = {}
    for given in arguments.relation:
        name, _, path = given.partition("=")
        relations[name] = read_pairs(dataset, Path(path))
    if not arguments.shared:
        relations = without_shared(relations)
    neighbours = nearest(config, dataset, max(arguments.k))
    rows = [row for name, pairs in relations.items() for row in measure(name, pairs, neighbours, arguments.k)]
    print(markdown(rows, arguments.k))
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=2))


def read_pairs(dataset: Dataset, path: Path) -> Pairs:
    """[P, 2] item indices of the pairs whose items the dataset has, each once, none with itself.

    Raises:
        ValueError: the file has no columns ``item`` and ``other``.
    """
    table = pq.read_table(path)
    if not {"item", "other"} <= set(table.column_names):
        raise ValueError(f"{path}: columns {', '.join(table.column_names)}, expected item and other")
    sides = [dataset.find(table.column(name).to_numpy(zero_copy_only=False)) for name in ("item", "other")]
    pairs = np.stack(sides, axis=1)
    return np.unique(pairs[(pairs >= 0).all(axis=1) & (pairs[:, 0] != pairs[:, 1])], axis=0)


def without_shared(relations: Mapping[str, Pairs]) -> dict[str, Pairs]:
    """The pairs that stand in one relation alone."""
    width = 1 + max((int(pairs.max(initial=0)) for pairs in relations.values()), default=0)
    keys = {name: pairs[:, 0] * width + pairs[:, 1] for name, pairs in relations.items()}
    every, counts = np.unique(np.concatenate(list(keys.values())), return_counts=True)
    alone = every[counts == 1]
    return {name: pairs[np.isin(keys[name], alone)] for name, pairs in relations.items()}


def nearest(config: Config, dataset: Dataset, k: int) -> dict[str, Pairs]:
    """Way -> [I, k] nearest items of each item, best first, -1: none; an item without training events has none.

    Raises:
        ValueError: there are no embeddings of the recipe.
    """
    embeddings = open_artifact(config.model_dir("embeddings"), "embeddings")
    heads = EmbeddingsSummary.model_validate(embeddings.summary).heads
    vectors = {f"{head} head": np.load(embeddings.path / vectors_file(head)).astype(np.float32) for head in heads}
    if config.needs_content and (config.content_dir / MANIFEST).is_file():
        vectors["content (teacher)"] = np.asarray(open_content(config.content_dir, dataset).embeddings, np.float32)
    found = {name: nearest_vectors(of_items, k) for name, of_items in vectors.items()}
    engaged = engagements(dataset.history_reader(), dataset.num_items)
    found["co-occurrence"] = nearest_by_co_occurrence(engaged, k)
    fresh = dataset.item_table.train_count == 0
    for items in found.values():
        items[fresh] = -1
    return found


def nearest_vectors(vectors: npt.NDArray[np.float32], k: int) -> Pairs:
    """[I, k] by dot product, without the item itself."""
    _, items = ExactIndex.build(vectors).search(vectors, min(k + 1, len(vectors)))
    found = np.full((len(vectors), k), -1, np.int64)
    for row, near in enumerate(np.asarray(items, np.int64)):
        others = near[near != row][:k]
        found[row, : len(others)] = others
    return found


def nearest_by_co_occurrence(engaged: Any, k: int) -> Pairs:
    """[I, k] by the cosine of the items' users.

    Args:
        engaged: [U, I] sparse matrix of 0 and 1.
        k: neighbours.
    """
    users = np.asarray(engaged.sum(axis=0)).ravel()
    together = (engaged.T @ engaged).tocsr()
    found = np.full((together.shape[0], k), -1, np.int64)
    for row in range(together.shape[0]):
        span = slice(together.indptr[row], together.indptr[row + 1])
        items = together.indices[span]
        cosines = together.data[span] / np.sqrt(users[items] * max(users[row], 1))
        kept = items != row
        best = items[kept][np.argsort(-cosines[kept], kind="stable")[:k]]
        found[row, : len(best)] = best
    return found


def measure(relation: str, pairs: Pairs, neighbours: Mapping[str, Pairs], ks: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each way to find neighbours, and one for the difference of the first two heads."""
    width = 1 + max(int(pairs.max(initial=0)), *(int(items.max(initial=0)) for items in neighbours.values()))
    items, sizes = np.unique(pairs[:, 0], return_counts=True)
    known = (next(iter(neighbours.values()))[items] >= 0).any(axis=1)
    items, sizes = items[known], sizes[known]
    if not len(items):
        return []
    keys = pairs[:, 0] * width + pairs[:, 1]
    bootstrap, ones = Bootstrap(len(items)), np.ones(len(items))
    recalls: dict[str, dict[int, npt.NDArray[np.float64]]] = {}
    rows = []
    for name, near in neighbours.items():
        hits = np.isin(items[:, None] * width + near[items], keys) & (near[items] >= 0)
        recalls[name] = {k: hits[:, :k].sum(axis=1) / np.minimum(sizes, k) for k in ks}
        estimates = {k: bootstrap.mean(recalls[name][k]) for k in ks}
        rows.append(_row(relation, name, len(items), {k: (e.value, e.standard_error) for k, e in estimates.items()}))
    heads = [name for name in neighbours if name.endswith(" head")]
    if len(heads) > 1:
        first, second = recalls[heads[0]], recalls[heads[1]]
        found = {k: bootstrap.difference((first[k], ones), (second[k], ones)) for k in ks}
        values = {k: (e.value, e.standard_error) for k, e in found.items() if e is not None}
        rows.append(_row(relation, f"{heads[0]} less {heads[1]}", len(items), values))
    return rows


def _row(relation: str, way: str, items: int, values: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    recall = {k: {"value": value, "half": 1.96 * error} for k, (value, error) in values.items()}
    return {"relation": relation, "way": way, "items": items, "recall": recall}


def markdown(rows: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> str:
    """A table of all rows, percent."""
    lines = [
        "| relation | items | | " + " | ".join(f"recall@{k}" for k in ks) + " |",
        "|---|---:|---|" + "---:|" * len(ks),
    ]
    for row in rows:
        cells = [f"{100 * row['recall'][k]['value']:.2f} ±{100 * row['recall'][k]['half']:.2f}" for k in ks]
        lines.append(f"| {row['relation']} | {row['items']:,} | {row['way']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
