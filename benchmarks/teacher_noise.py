"""Cost of a wrong teacher: noise in the teacher against the retrieval quality of the trained heads.

A share of the items gets the content embedding of another item, as from hallucinated tags or mixed-up images; at 1 the
teacher says nothing. For each share the model is trained, indexed and evaluated anew, on the same dataset, unless a run
of the same settings is there already (`benchmarks.run_folders`). A seed is that of weights, of the order of pairs, and
of which items are wrong; figures are means over seeds, with half of a 95 % interval over users and seeds. Prints a
table and writes JSON and a picture (SVG).

    python -m benchmarks.teacher_noise demo --shares 0 0.25 0.5 1 --seeds 0 1 2 --out teacher-noise.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.run_folders import run_name, shared_folders
from mtmh.artifacts import MANIFEST, write_artifact
from mtmh.config import Config, load_config
from mtmh.content.check import CHECK_METRICS as CHECK_METRICS
from mtmh.content.check import check_content
from mtmh.data.content_store import EMBEDDINGS, open_content
from mtmh.data.dataset import open_dataset
from mtmh.evaluation.evaluate import evaluate
from mtmh.evaluation.metrics import Estimate
from mtmh.evaluation.results import Evaluation, Row, load_evaluation
from mtmh.index.build import build_index
from mtmh.papers.intervals import Interval
from mtmh.start.run import run_stages
from mtmh.tower.embed import embed_catalogue
from mtmh.training.trainer import train


def main() -> None:
    """Runs what is missing, prints the table, writes JSON and picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.25, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    alone = [*arguments.overrides, "retrieval.sorter=head-score"]  # the heads are compared, without other evidence
    overrides = [*alone, *shared_folders(load_config(arguments.recipe, alone))]
    base = load_config(arguments.recipe, overrides)
    run_stages(base, print, until="content_embed")
    rows: dict[float, dict[str, Interval]] = {}
    for share in arguments.shares:
        found = [one_run(arguments.recipe, overrides, base, share, seed) for seed in arguments.seeds]
        rows[share] = over_seeds(found)
    result = {
        "command": " ".join(["python -m benchmarks.teacher_noise", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "rows": [
            {"share": share} | {name: value.model_dump() for name, value in row.items()} for share, row in rows.items()
        ],
    }
    table = Table(title=f"{arguments.recipe}: items with another item's content embedding")
    for head in ("wrong items", *rows[arguments.shares[0]]):
        table.add_column(head, justify="right")
    for share, row in rows.items():
        table.add_row(f"{100 * share:g}", *map(str, row.values()))
    Console(width=200).print(table)
    arguments.out.write_text(json.dumps(result, indent=2))
    draw(rows, arguments.out.with_suffix(".svg"))


def one_run(recipe: str, overrides: list[str], base: Config, share: float, seed: int) -> dict[str, Estimate]:
    """Trains and evaluates with one share of wrong rows under one seed."""
    name = run_name(f"wrong-{share:g}-seed{seed}", base)
    content = base.paths.root / f"content-{name}"
    own = [f"name={name}", f"paths.content={content}", f"training.seed={seed}"]
    config = load_config(recipe, [*overrides, *own])
    if not (content / MANIFEST).is_file():
        write_wrong_teacher(base, content, share, seed)
    evaluation_dir = config.model_dir("evaluation")
    if not (evaluation_dir / MANIFEST).is_file():
        train(config)
        embed_catalogue(config, config.model_dir("embeddings"))
        build_index(config, config.model_dir("index"))
        evaluate(config, evaluation_dir)
    # The rows that the heads learned from, the wrong ones too, and not the encoder that wrote the others.
    written = config.model_copy(update={"content": config.content.model_copy(update={"kind": "column"})})
    check = check_content(written, base.paths.root / f"check-{name}")
    auc = json.loads((check.path / CHECK_METRICS).read_text())["rows"][0]["auc"]["topic_l2"]
    whole = Estimate(value=auc, standard_error=0.0, low=auc, high=auc)  # of all pairs of a sample, not of users
    return {"teacher AUC L2": whole} | figures_of(load_evaluation(evaluation_dir))


def over_seeds(found: Sequence[Mapping[str, Estimate]]) -> dict[str, Interval]:
    """The figures of one share under several seeds, as one each."""
    rows: dict[str, Interval] = {}
    for name in found[0]:
        interval = Interval.of([of_seed[name] for of_seed in found])
        assert interval is not None
        rows[name] = interval
    return rows


def write_wrong_teacher(base: Config, out: Path, share: float, seed: int) -> None:
    """The recipe's content embeddings, a share of the rows permuted among themselves."""
    dataset = open_dataset(base.dataset_dir)
    content = open_content(base.content_dir, dataset)
    embeddings: npt.NDArray[Any] = np.array(content.embeddings)
    rng = np.random.default_rng((base.seed, seed))
    wrong = rng.permutation(len(embeddings))[: round(share * len(embeddings))]
    embeddings[wrong] = embeddings[rng.permutation(wrong)]
    inputs = {"dataset": dataset.artifact, "content": content.artifact}
    with write_artifact(out, "content", config={"wrong_share": share, "seed": seed}, inputs=inputs) as writer:
        np.save(writer.folder / EMBEDDINGS, embeddings)
        writer.summary |= {"kind": "wrong", "wrong_share": share}


def figures_of(evaluation: Evaluation) -> dict[str, Estimate]:
    """L2 match and recall of each head alone and of the merged answers."""
    found: dict[str, Estimate] = {}
    rows: list[Row] = [row for row in evaluation.rows if row.kind in ("merged", "head")]
    largest = evaluation.protocol.recall_at[-1]
    for row in rows:
        name = "merged" if row.kind == "merged" else row.name.removeprefix(evaluation.model).strip(" ,")
        if row.match_l2 is not None:
            found[f"L2 match, {name}"] = row.match_l2
        found[f"recall@{largest}, {name}"] = row.recall[largest]
    return found


def draw(rows: Mapping[float, Mapping[str, Interval]], path: Path) -> None:
    """Topic match and recall against the share, relative to a right teacher's."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "mtmh"}):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        for place, what in enumerate(("L2 match", "recall")):
            axes = figure.add_subplot(1, 2, place + 1)
            names = dict.fromkeys(name for row in rows.values() for name in row if name.startswith(what))
            shares = [100.0 * share for share in rows]
            for name in names:
                values, halves = zip(
                    *((100.0 * row[name].value, 100.0 * row[name].half) for row in rows.values()), strict=True
                )
                axes.errorbar(shares, values, yerr=halves, marker="o", capsize=2, label=name.split(", ")[-1])
            axes.set_xlabel("items with a wrong content embedding, percent")
            axes.set_ylabel(f"{what}, percent")
            axes.set_ylim(bottom=0.0)
            axes.grid(linewidth=0.5, alpha=0.5)
            axes.legend(frameon=False)
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
