"""Retrieval quality of the settings of the model: MTMH, MTSH, STMH and single-task on one data set, over seeds.

    python -m benchmarks.results synthetic --seeds 0 1 2 --out runs/results/synthetic.json
    python -m benchmarks.results synthetic --settings mtmh streaming --out runs/results/streaming.json

Runs the same verbs as a user would, prints two Markdown tables and writes every figure of every run as JSON. The first
table has every row, the second the difference of what a setting answers to the yardstick that is best at each cut-off,
paired by user. Figures are means over seeds, ± half of a 95 % interval over users and seeds: 1.96 times the root of the
variance of the mean over users (bootstrap) plus that over seeds. A run's folder is named by its settings
(`benchmarks.run_folders`), so another configuration is another run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.run_folders import run_name, shared_folders
from mtmh.artifacts import MANIFEST
from mtmh.config import Config, load_config, variant_names
from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Evaluation, Row, load_evaluation
from mtmh.papers.intervals import cell

SETTINGS = ("mtmh", "mtsh", "stmh", "single-task")
NAMES = {"mtmh": "MTMH", "mtsh": "MTSH", "stmh": "STMH"}  # of the others as they are


def main() -> None:
    """Parses the command line, runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=("mtmh", *variant_names()))
    parser.add_argument("--input", help="folder of the raw data, for recipes that read files")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one thread each if above 1")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    started = time.time()
    shared = [*arguments.overrides, *([f"data.input={arguments.input}"] if arguments.input else [])]
    shared += shared_folders(load_config(arguments.recipe, shared))
    base = load_config(arguments.recipe, shared)
    if not (base.dataset_dir / MANIFEST).is_file():
        verb(arguments.jobs, "prepare", arguments.recipe, shared)
    if not (base.content_dir / MANIFEST).is_file():
        verb(arguments.jobs, "content", "embed", arguments.recipe, shared)
    runs = [(setting, seed) for seed in arguments.seeds for setting in arguments.settings]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = [pool.submit(one_run, arguments.recipe, *run, shared, arguments.jobs) for run in runs]
        evaluations = [future.result() for future in futures]

    by_setting = {
        setting: [found for (ran, _), found in zip(runs, evaluations, strict=True) if ran == setting]
        for setting in arguments.settings
    }
    table = f"{markdown(by_setting)}\n{against_yardsticks(by_setting)}"
    print(table)
    result = {
        "command": " ".join(["python -m benchmarks.results", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "minutes": round((time.time() - started) / 60, 1),
        "config": base.model_dump(mode="json"),
        "runs": {setting: [run.model_dump(mode="json") for run in found] for setting, found in by_setting.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result))
    arguments.out.with_suffix(".md").write_text(table)


def one_run(recipe: str, setting: str, seed: int, shared: Sequence[str], jobs: int) -> Evaluation:
    """Trains, embeds, indexes and evaluates one setting with one seed; a run of the same settings is taken as it is."""
    varied = recipe if setting == "mtmh" else f"{recipe}+{setting}"
    name = run_name(f"{setting}-seed{seed}", load_config(varied, list(shared)), training_seed=seed)
    overrides = [*shared, f"name={name}"]
    config: Config = load_config(varied, overrides)
    folder = config.model_dir("evaluation")
    if not (folder / MANIFEST).is_file():
        verb(jobs, "train", varied, [*overrides, f"seed={seed}"])
        # Not the evaluation: all settings and seeds are asked about the same users.
        verb(jobs, "embed", varied, overrides)
        # However much an index loses: the table tells, with exact search beside it.
        verb(jobs, "build-index", varied, [*overrides, "index.min_recall=0"])
        verb(jobs, "evaluate", varied, overrides)
    return load_evaluation(folder)


def verb(jobs: int, *words: str | Sequence[str]) -> None:
    """Runs ``mtmh WORDS``; a failure ends the benchmark with what the verb said."""
    *names, overrides = words
    command = [sys.executable, "-m", "mtmh.cli", *map(str, names)]
    command += [part for override in overrides for part in ("--set", override)]
    environment = {**os.environ, **({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})}
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    label = next((part for part in overrides if part.startswith("name=")), "")
    print(f"{' '.join(map(str, names))} {label}: {time.time() - started:.0f} s", file=sys.stderr)


def markdown(by_setting: dict[str, list[Evaluation]]) -> str:
    """One line a model and head, then the yardsticks, which are the same for all."""
    first = next(iter(by_setting.values()))[0]
    recalls = [f"recall@{k}" for k in first.protocol.recall_at]
    headings = ["", *recalls, "L1 match", "L2 match", f"fresh {recalls[-1]}", "coverage", "popular 1 %"]
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    for setting, found in by_setting.items():
        for place, row in enumerate(found[0].rows):
            if row.kind in ("merged", "head") or (row.kind == "exact" and setting == "mtmh"):
                lines.append(line(label(setting, row, found[0]), [evaluation.rows[place] for evaluation in found]))
    lines += [line(row.name, [row]) for row in first.rows if row.kind == "yardstick"]
    return "\n".join(lines) + "\n"


def label(setting: str, row: Row, evaluation: Evaluation) -> str:
    """``MTMH``, ``MTMH, relevance head alone``, ..."""
    of_row = row.name.removeprefix(evaluation.model)
    name = NAMES.get(setting, setting)
    return f"**{name}{of_row}**" if row.kind == "merged" else f"{name}{of_row}"


def line(name: str, rows: Sequence[Row]) -> str:
    """A row of the table, in percent."""
    largest = max(rows[0].recall)
    figures: list[list[Estimate | None]] = [[row.recall[k] for row in rows] for k in rows[0].recall]
    figures += [[row.match_l1 for row in rows], [row.match_l2 for row in rows]]
    figures += [[row.fresh_recall[largest] for row in rows]]
    coverage = f"{100 * statistics.mean(row.coverage for row in rows):.2f}"
    return "| " + " | ".join([name, *map(cell, figures), coverage, cell([row.popular for row in rows])]) + " |"


def against_yardsticks(by_setting: dict[str, list[Evaluation]]) -> str:
    """Figures of each setting minus the best yardstick at each cut-off, in percentage points."""
    first = next(iter(by_setting.values()))[0]
    if not first.against:
        return ""
    headings = [f"recall@{found.recall_at} − {found.yardstick}" for found in first.against]
    lines = ["| " + " | ".join(["", *headings]) + " |", "|---|" + "---:|" * len(headings)]
    for setting, found in by_setting.items():
        cells = [cell([run.against[place].difference for run in found]) for place in range(len(headings))]
        lines.append("| " + " | ".join([NAMES.get(setting, setting), *cells]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
