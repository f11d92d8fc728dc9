"""Verbs of the path from events to an evaluated index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mtmh.cli.options import Out, Overrides, Recipe, done, say, speaks


def prepare(
    recipe: Recipe,
    out: Out = None,
    source: Annotated[str | None, typer.Option("--input", help="Folder of the raw data: a path or URL.")] = None,
    overrides: Overrides = None,
) -> None:
    """Turns raw events and items into a dataset artifact."""
    from mtmh.config import load_config
    from mtmh.prepare.prepare import prepare as run
    from mtmh.prepare.report import summary_table

    config = load_config(recipe, [*(overrides or []), *([f"data.input={source}"] if source else [])])
    artifact = run(config, out or config.dataset_dir)
    Console().print(summary_table(artifact))
    done("dataset", artifact.path)


def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of this recipe.")] = True,
    continue_from: Annotated[
        Path | None, typer.Option(help="Checkpoint of the period before, whose model a fresh run starts from.")
    ] = None,
    profile: Annotated[
        int, typer.Option(min=0, help="Steps to trace, for ui.perfetto.dev; into checkpoints/trace.")
    ] = 0,
) -> None:
    """Trains the model; alone, or as one rank of torchrun or `torchx run mtmh.train`."""
    from mtmh.cli.ignored_settings import load_for

    config = load_for("train", recipe, overrides)  # before torch, which takes seconds: a slip is told at once
    from mtmh.training.trainer import train as run

    run(config, resume=resume, continue_from=continue_from, profile=profile)


def plan(
    recipe: Recipe,
    hosts: Annotated[int, typer.Option(help="Hosts.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs a host; with --device cpu, processes a host.")] = 8,
    device: Annotated[
        str, typer.Option(help="a100-40gb, a100-80gb, p4d, p4de, h100-80gb, h200-141gb or cpu.")
    ] = "a100-80gb",
    overrides: Overrides = None,
) -> None:
    """Plans a chain on machines that are not there; exit code 1 if the tables do not fit.

    Shows how the tables would be spread, and what each stage would take and where it would break.
    """
    from mtmh.chain.stage_plan import plan_stages, stages_view
    from mtmh.config import load_config
    from mtmh.distributed.hardware import Cluster
    from mtmh.training.plan import DoesNotFit, make_plan
    from mtmh.training.plan_report import plan_report

    config = load_config(recipe, overrides)
    try:
        cluster = Cluster(device, hosts, gpus)
        planned = make_plan(config, cluster)
    except DoesNotFit as error:
        Console(stderr=True).print(str(error), highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1) from None
    stages = plan_stages(config, cluster, planned)
    console = Console()
    console.print(plan_report(planned), stages_view(stages), highlight=False)
    for stage in stages:
        for problem in stage.breaks:
            console.print(f"{stage.name}: {problem}", highlight=False, markup=False)


def embed(
    recipe: Recipe,
    out: Out = None,
    delta_from: Annotated[
        Path | None,
        typer.Option(help="Checkpoint that the model was continued from: embeds only items whose rows have changed."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Embeds the catalogue under every head of the newest checkpoint."""
    from mtmh.cli.ignored_settings import load_for

    config = load_for("embed", recipe, overrides)
    from mtmh.tower.artifact import EmbeddingsSummary
    from mtmh.tower.embed import embed_catalogue

    artifact = embed_catalogue(config, out or config.model_dir("embeddings"), delta_from=delta_from)
    made = EmbeddingsSummary.model_validate(artifact.summary)
    if made.delta is not None:
        say(
            f"{made.num_items - made.delta.num_kept:,} of {made.num_items:,} items embedded anew; the others have "
            f"drifted by {made.delta.mean_drift:.4f} on average (1 - cosine)"
        )
    done("item embeddings", artifact.path)


def build_index(
    recipe: Recipe,
    out: Out = None,
    publish: Annotated[bool, typer.Option(help="Publish it; otherwise `mtmh index publish` does, later.")] = True,
    overrides: Overrides = None,
) -> None:
    """Builds one index a head and publishes it as the next version; exit code 1 if it misses the recall gate."""
    from mtmh.artifacts import open_artifact
    from mtmh.cli.ignored_settings import load_for
    from mtmh.cli.index import missed_gate
    from mtmh.index.artifact import IndexSummary
    from mtmh.index.build import build_index as run
    from mtmh.index.build import build_version
    from mtmh.index.kinds import WORTH_ITEMS, compare_kinds, recommendation
    from mtmh.index.storage import IvfSettings
    from mtmh.index.versions import BelowGateError

    config = load_for("build_index", recipe, overrides)
    if out is not None:  # an index by itself, without versions
        built = run(config, out).path
        done("index", built)
    else:
        try:
            built = build_version(config, publish=publish)
        except BelowGateError as error:
            missed_gate(error)
        done("published index" if publish else "unpublished index", built)
    summary = IndexSummary.model_validate(open_artifact(built, "index").summary)
    found = ", ".join(f"{head} {measured.recall:.3f}" for head, measured in summary.ann_recall.items())
    say(f"a search visits {summary.num_probes} of {summary.num_clusters} clusters and finds of the exact ones: {found}")
    if speaks() and summary.backend == "faiss" and summary.num_items >= WORTH_ITEMS:
        say(recommendation(compare_kinds(built, summary, IvfSettings.of(config.index, config.seed)), summary))


def retrieve(
    recipe: Recipe,
    trigger: Annotated[str, typer.Option(help="Item id to find neighbours of.")],
    k: Annotated[int, typer.Option(help="Items to print.")] = 10,
    alpha: Annotated[float | None, typer.Option(help="Percent from the engagement head.")] = None,
    overrides: Overrides = None,
) -> None:
    """Prints what each head and the merge return for one trigger, side by side."""
    from mtmh.cli.answer_table import retrieval_table
    from mtmh.cli.ignored_settings import load_for
    from mtmh.live.live_index import LiveIndex
    from mtmh.retrieval.query import Query

    config = load_for("evaluate", recipe, overrides)
    retriever = LiveIndex(config.model_dir("index"), config.retrieval, config.index.milvus).retriever
    side_by_side = retriever.retrieve_side_by_side(Query([trigger], k=k, alpha=alpha))
    Console().print(retrieval_table(side_by_side))


def evaluate(
    recipe: Recipe,
    out: Out = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="Evaluation folder of another model, shown beside; repeatable.")
    ] = None,
    index_version: Annotated[
        str | None, typer.Option(help="A version of `mtmh index list`; default: the published one.")
    ] = None,
    published_version: Annotated[
        str | None, typer.Option(help="A version to measure beside, of whatever data, as it was built.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measures recall and topic match by the paper's protocol and writes report.html."""
    from mtmh.cli.ignored_settings import load_for

    config = load_for("evaluate", recipe, overrides)
    from mtmh.evaluation.evaluate import evaluate as run
    from mtmh.evaluation.results import load_evaluation
    from mtmh.evaluation.tables import results_table
    from mtmh.evaluation.verdict import verdict
    from mtmh.index.versions import find_version

    index = find_version(config.model_dir("index"), index_version) if index_version else None
    published = find_version(config.model_dir("index"), published_version) if published_version else None
    out = out or config.model_dir("evaluation")
    artifact = run(config, out, compare=compare or [], index=index, published=published)
    evaluations = [load_evaluation(path) for path in (artifact.path, *(compare or []))]
    Console().print(results_table(evaluations))
    for line in [*verdict(evaluations[0]), *evaluations[0].notes]:
        Console().print(escape(line), highlight=False)
    done("report", artifact.path / "report.html")


def report(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Recipes, or folders of evaluations; several are compared."),
    ],
    compare: Annotated[
        bool, typer.Option("--compare", help="One page with all models beside each other; so with several anyway.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page; default: beside the first model's evaluation.")
    ] = None,
) -> None:
    """Writes the report of a model that `mtmh evaluate` has measured, or one page that compares several."""
    from mtmh.artifacts import write_atomically
    from mtmh.evaluation.comparison import Comparison, evaluation_folder
    from mtmh.evaluation.report import report_page
    from mtmh.evaluation.results import load_evaluation
    from mtmh.evaluation.tables import results_table
    from mtmh.evaluation.verdict import verdict

    folders = [evaluation_folder(model) for model in models]
    if compare or len(folders) > 1:
        comparison = Comparison.of(folders)
        evaluations, lines, page = comparison.evaluations, comparison.verdict(), comparison.page()
        out = out or folders[0].with_name("comparison.html")
    else:
        evaluations = [load_evaluation(folders[0])]
        lines, page = verdict(evaluations[0]), report_page(evaluations[0])
        out = out or folders[0].with_name("report.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page)
    Console().print(results_table(evaluations))
    for line in lines:
        Console().print(escape(line), highlight=False)
    done("comparison" if len(folders) > 1 else "report", out)
