"""Recall of items that a model has never seen, beside what training on their events gives.

A tenth of a data set's items is held out: in one run all their events in T1 are removed, so that text alone tells of
them, in the other they stay. Both runs are asked for the same users with the same histories, without the held-out
items, and searched for the held-out items that these users engaged with in T2.

    python -m benchmarks.fresh_items DATA --only citeulike-t --out runs/fresh/results.json

``DATA`` is as in ``benchmarks.strangers``, whose recipes give the data and the teacher; every verb runs with its
defaults.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.results import verb
from benchmarks.strangers.__main__ import RECIPES, settings
from mtmh import Query, Retriever
from mtmh.artifacts import MANIFEST
from mtmh.config import load_config
from mtmh.data.dataset import Dataset, open_dataset
from mtmh.index.versions import current_version

CUT_OFFS = (20, 100, 500)
LISTS = {"as served": None, "engagement head": 100.0, "relevance head": 0.0}
CUTOFF = 1_000_000  # T1 lies before: an event's place in its user's history, as a share of it
NUM_USERS = 2000


def main() -> None:
    """Parses the command line, runs what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--only", nargs="+", required=True, choices=RECIPES)
    parser.add_argument("--share", type=float, default=0.1, help="of the items with training events, held out")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of items and users")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    results = {}
    for name in arguments.only:
        results[name] = measured(name, arguments)
        print(table(name, results[name]), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1))


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Recall by run, kind of list and cut-off, for one data set."""
    folder = arguments.out.parent / name
    folder.mkdir(parents=True, exist_ok=True)
    source, overrides = settings(name, arguments.data, folder)
    config = load_config(source, overrides)
    if not (config.dataset_dir / MANIFEST).is_file():
        verb(1, "prepare", source, overrides)
    dataset = open_dataset(config.dataset_dir)
    counts = dataset.items(["train_count"])["train_count"].to_numpy()
    random = np.random.default_rng(arguments.seed)
    trained = np.flatnonzero(counts)
    held = np.zeros(len(counts), bool)
    held[random.choice(trained, int(arguments.share * len(trained)), replace=False)] = True

    users = asking(dataset, held, random)
    found: dict[str, Any] = {
        "items": int(held.sum()),
        "users": len(users),
        "wanted": sum(len(wanted) for _, wanted in users),
    }
    for run, unseen in (("trained", np.zeros_like(held)), ("never seen", held)):
        recipe = write_run(
            dataset, unseen, config.content.model_dump(mode="json", exclude_unset=True), folder / run.replace(" ", "-")
        )
        for words in (
            ("prepare",),
            ("content", "embed"),
            ("train",),
            ("embed",),
            ("train-preranker",),
            ("build-index",),
        ):
            verb(1, *words, str(recipe), arguments.overrides)
        index = current_version(load_config(recipe, arguments.overrides).model_dir("index"))
        found[run] = recalls(Retriever.load(index), users)
    return found


def asking(
    dataset: Dataset, held: npt.NDArray[np.bool_], random: np.random.Generator
) -> list[tuple[list[str], set[str]]]:
    """Users who engage with held-out items in T2 only: their histories without such items, and what they want."""
    ids = np.array(dataset.item_ids.tolist(), str)
    sample = dataset.evaluation_users(dataset.summary.num_users, 0)
    users = []
    for row in random.permutation(len(sample.user_index)):
        past, future = (part.users(int(row), int(row) + 1).items for part in (sample.histories, sample.test))
        wanted = set(ids[future[held[future]]]) - set(ids[past])
        history = ids[past[~held[past]]].tolist()
        if wanted and history:
            users.append((history, wanted))
    return users[:NUM_USERS]


def write_run(dataset: Dataset, unseen: npt.NDArray[np.bool_], content: dict[str, Any], folder: Path) -> Path:
    """Tables of all items and of the events but for those of unseen items in T1, and a recipe of them: its path."""
    folder.mkdir(exist_ok=True)
    ids, reader = np.array(dataset.item_ids.tolist(), str), dataset.history_reader()
    parts, first = [], 0
    for group in range(reader.num_groups):
        histories = reader.read(group)
        lengths = np.diff(histories.offsets)
        place = np.arange(len(histories.items)) - np.repeat(histories.offsets[:-1], lengths)
        when = place * CUTOFF // np.repeat(lengths, lengths)
        user = first + np.repeat(np.arange(len(lengths)), lengths)
        kept = ~unseen[histories.items]
        parts.append((user[kept], ids[histories.items[kept]], when[kept]))
        first += len(lengths)
    sample = dataset.evaluation_users(dataset.summary.num_users, 0)
    lengths = np.diff(sample.test.offsets)
    place = np.arange(len(sample.test.items)) - np.repeat(sample.test.offsets[:-1], lengths)
    parts.append((np.repeat(sample.user_index, lengths), ids[sample.test.items], CUTOFF + place))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    pq.write_table(
        pa.table(dict(zip(("user_id", "item_id", "timestamp"), columns, strict=True))), folder / "events.parquet"
    )
    text = dataset.items(["text"])["text"]
    pq.write_table(pa.table({"item_id": ids, "text": text}), folder / "items.parquet")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "name": "mtmh",
                "paths": {"root": str((folder / "run").resolve())},
                "data": {
                    "source": "tables",
                    "input": str(folder.resolve()),
                    "events": ["events.parquet"],
                    "items": ["items.parquet"],
                    "columns": {"text": ["text"]},
                    "id_features": [],
                    "split": {"kind": "time", "cutoff": CUTOFF},
                },
                "content": content,
            },
            sort_keys=False,
        )
    )
    return recipe


def recalls(retriever: Retriever, users: list[tuple[list[str], set[str]]]) -> dict[str, dict[int, float]]:
    """Mean share of what a user wants that is in the first places of the list, in percent, by kind of list."""
    found = {}
    for kind, alpha in LISTS.items():
        hits = np.zeros(len(CUT_OFFS))
        for history, wanted in users:
            answers = retriever.retrieve_user(Query(history=history, k=CUT_OFFS[-1], alpha=alpha))
            right = np.array([answer.item in wanted for answer in answers])
            hits += [right[:cut].sum() / len(wanted) for cut in CUT_OFFS]
        found[kind] = {cut: round(100 * float(hit) / len(users), 2) for cut, hit in zip(CUT_OFFS, hits, strict=True)}
    return found


def table(name: str, found: dict[str, Any]) -> str:
    """Markdown: never seen / trained, and the quotient, by kind of list and cut-off."""
    lines = [f"## {name}: {found['items']} items held out, {found['users']} users, {found['wanted']} wanted", ""]
    lines += ["| list | " + " | ".join(f"@{cut}" for cut in CUT_OFFS) + " |", "|---|" + "---|" * len(CUT_OFFS)]
    for kind in LISTS:
        cells = []
        for cut in CUT_OFFS:
            new, known = found["never seen"][kind][cut], found["trained"][kind][cut]
            cells.append(f"{new} of {known}: {new / known:.0%}" if known else f"{new} of {known}")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
