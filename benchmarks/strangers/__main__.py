"""Ten-line recipes, nothing set by hand, on data sets of other people, beside the strongest yardsticks.

    python -m benchmarks.strangers DATA --out runs/strangers/results.json
    python -m benchmarks.strangers DATA --only grocery movielens --out runs/strangers/two.json

``DATA`` holds a folder a data set, as `RECIPES` names them. For each the verbs of a user run one after another:
prepare, content embed, train, embed, train-preranker, build-index, evaluate. Prints for each data set its table, what
``auto`` chose and the seconds of every verb, and writes all of it as JSON; the merged answer's difference to the
yardstick that is best at each cut-off is paired by user, with a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.results import markdown, verb
from mtmh.artifacts import MANIFEST, open_artifact
from mtmh.config import Config, load_config
from mtmh.evaluation.results import Evaluation, load_evaluation
from mtmh.training.newest import latest_checkpoint

HERE = Path(__file__).parent

# By data set: its recipe, and its folder.
RECIPES = {
    "amazon-sports": ("amazon", "amazon-sports"),
    "citeulike-t": (str(HERE / "citeulike-t.yaml"), "citeulike-t"),
    "complete-journey": ("complete-journey", "complete-journey"),
    "grocery": (str(HERE / "grocery.yaml"), "grocery"),
    "movielens": ("movielens", "movielens-latest-small"),
    "online-retail": ("online-retail", "online-retail"),
}


def main() -> None:
    """Parses the command line, runs what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    sections, results = [], {}
    for name in arguments.only:
        recipe, overrides = settings(name, arguments.data, arguments.out.parent)
        overrides += arguments.overrides
        seconds = run(recipe, overrides)
        config = load_config(recipe, overrides)
        found = load_evaluation(config.model_dir("evaluation"))
        chosen = chosen_by_auto(config)
        sections.append(section(name, found, seconds, chosen))
        print(sections[-1], flush=True)
        results[name] = {"seconds": seconds, "chosen": chosen, "evaluation": found.model_dump(mode="json")}
        arguments.out.with_suffix(".md").write_text("\n".join(sections))
        arguments.out.write_text(
            json.dumps(
                {
                    "command": " ".join(["python -m benchmarks.strangers", *sys.argv[1:]]),
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
                    "results": results,
                }
            )
        )


def settings(name: str, data: Path, out: Path) -> tuple[str, list[str]]:
    """A recipe, and the settings that lead it to the data and keep its results beside those of the others."""
    recipe, folder = RECIPES[name]
    source = data / folder
    if load_config(recipe, ["paths.root=."]).data.columns.timestamp == "shuffled":
        source = shuffle_events(source, out / f"{name}.shuffled")
    return recipe, [f"data.input={source.resolve()}", f"paths.root={(out / name).resolve()}"]


def shuffle_events(folder: Path, out: Path) -> Path:
    """The tables with a random order of the events in a column ``shuffled``, for data without any time."""
    out.mkdir(parents=True, exist_ok=True)
    events = pq.read_table(folder / "events.parquet")
    order = np.random.default_rng(0).permutation(len(events))
    pq.write_table(events.append_column("shuffled", pa.array(order)), out / "events.parquet")
    pq.write_table(pq.read_table(folder / "items.parquet"), out / "items.parquet")
    return out


def run(recipe: str, overrides: list[str]) -> dict[str, float]:
    """Runs the verbs whose artifacts are missing; seconds of each."""
    config = load_config(recipe, overrides)
    seconds = {}
    for words, folder in (
        (("prepare",), config.dataset_dir),
        (("content", "embed"), config.content_dir if config.needs_content else None),
        (("train",), None),
        (("embed",), config.model_dir("embeddings")),
        (("train-preranker",), config.model_dir("preranker")),
        (("build-index",), None),
        (("evaluate",), config.model_dir("evaluation")),
    ):
        if (words == ("content", "embed") and folder is None) or (folder is not None and (folder / MANIFEST).is_file()):
            continue
        started = time.perf_counter()
        verb(1, *words, recipe, overrides)
        seconds[" ".join(words)] = round(time.perf_counter() - started, 1)
    return seconds


def chosen_by_auto(config: Config) -> dict[str, Any]:
    """Choices that the run made by itself, as the checkpoint and the preranker recorded them."""
    checkpoint = open_artifact(latest_checkpoint(config.model_dir("checkpoints")), "checkpoint")
    preranker = open_artifact(config.model_dir("preranker"), "preranker")
    return {"checkpoint": checkpoint.summary, "preranker": preranker.summary}


def section(name: str, found: Evaluation, seconds: dict[str, float], chosen: dict[str, Any]) -> str:
    """Markdown of one data set."""
    lines = [f"## {name}", "", markdown({"mtmh": [found]}), "| cut-off | best yardstick | MTMH | difference | |"]
    lines.append("|---:|---|---:|---:|---|")
    for row in found.against:
        ours = found.merged.recall[row.recall_at].value
        theirs = ours - row.difference.value
        relative = f"{row.difference.value / theirs:+.0%}" if theirs > 0 else "–"
        lines.append(
            f"| {row.recall_at} | {row.yardstick} {100 * theirs:.2f} | {100 * ours:.2f} | {relative} | {row.side} |"
        )
    lines += ["", "Seconds: " + ", ".join(f"{words} {value:g}" for words, value in seconds.items()) + "."]
    lines += [f"Trained {chosen['checkpoint']['step']} steps.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
