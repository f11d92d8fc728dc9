"""The command line: one verb a stage. Verbs import what they need, so that each starts fast."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mtmh.config import Config, load_config

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Item-to-item retrieval: prepare, content, train, embed, build-index, retrieve, evaluate.",
)
content_app = typer.Typer(no_args_is_help=True, help="The teacher: content embeddings of the catalogue.")
app.add_typer(content_app, name="content")

Recipe = Annotated[str, typer.Argument(help="A recipe that ships with mtmh (see `mtmh recipes`), or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Changes one setting of the recipe; repeatable.")
]
Out = Annotated[Path | None, typer.Option(help="Where the artifact goes; default: the recipe's folder for it.")]


@app.command()
def prepare(
    recipe: Recipe,
    out: Out = None,
    source: Annotated[Path | None, typer.Option("--input", help="Folder of the raw data.")] = None,
    overrides: Overrides = None,
) -> None:
    """Turns raw events and items into a dataset artifact."""
    from mtmh.data.prepare import prepare as run
    from mtmh.data.report import summary_table

    config = load_config(recipe, [*(overrides or []), *([f"data.input={source}"] if source else [])])
    artifact = run(config, out or config.dataset_dir)
    Console().print(summary_table(artifact))
    _done("dataset", artifact.path)


@content_app.command("simulate")
def content_simulate(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Draws pictures and concepts for a simulated catalogue."""
    from mtmh.data.sources.synthetic_media import write_media

    config = load_config(recipe, overrides)
    _done("media", write_media(config, out or config.media_dir).path)


@content_app.command("train")
def content_train(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Trains the content encoder against concepts; alone, or as one rank of torchrun. Goes on where it was killed."""
    from mtmh.content.train import train_content

    config = load_config(recipe, overrides)
    _done("content encoder", train_content(config, out or config.encoder_dir).path)


@content_app.command("check")
def content_check(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Measures how well the teacher tells topics apart; exit code 1 if it misses a gate of the recipe."""
    from mtmh.content.check import check_content, check_table

    config = load_config(recipe, overrides)
    artifact = check_content(config, out or config.paths.root / "content-check")
    Console().print(check_table(artifact))
    _done("report", artifact.path / "report.html")
    for failure in artifact.summary["failures"]:
        Console(stderr=True).print(f"[red]missed[/red]: {failure}", highlight=False, soft_wrap=True)
    if artifact.summary["failures"]:
        raise typer.Exit(1)


@content_app.command("embed")
def content_embed(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Embeds every item of the catalogue with the frozen teacher."""
    from mtmh.content.embed import embed_content

    config = load_config(recipe, overrides)
    _done("content embeddings", embed_content(config, out or config.content_dir).path)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of this recipe.")] = True,
) -> None:
    """Trains the model; alone, or as one rank of torchrun or `torchx run mtmh.train`."""
    from mtmh.training.trainer import train as run

    run(load_config(recipe, overrides), resume=resume)


@app.command()
def plan(
    recipe: Recipe,
    hosts: Annotated[int, typer.Option(help="Hosts.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs a host; with --device cpu, processes a host.")] = 8,
    device: Annotated[str, typer.Option(help="a100-40gb, a100-80gb, h100-80gb, h200-141gb or cpu.")] = "a100-80gb",
    overrides: Overrides = None,
) -> None:
    """Shows how the tables would be spread over machines that are not there; exit code 1 if they do not fit."""
    from mtmh.training.hardware import Cluster
    from mtmh.training.plan import DoesNotFit, make_plan
    from mtmh.training.plan_report import plan_report

    config = load_config(recipe, overrides)
    try:
        planned = make_plan(config, Cluster(device, hosts, gpus))
    except DoesNotFit as error:
        Console(stderr=True).print(str(error), highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(1) from None
    Console().print(plan_report(planned), highlight=False)


@app.command()
def embed(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Embeds the catalogue under every head of the newest checkpoint."""
    from mtmh.index.embed import embed_catalogue

    config = load_config(recipe, overrides)
    _done("item embeddings", embed_catalogue(config, out or config.model_dir("embeddings")).path)


@app.command("build-index")
def build_index(recipe: Recipe, out: Out = None, overrides: Overrides = None) -> None:
    """Builds one inverted-file index a head."""
    from mtmh.index.build import build_index as run

    config = load_config(recipe, overrides)
    _done("index", run(config, out or config.model_dir("index")).path)


@app.command()
def retrieve(
    recipe: Recipe,
    trigger: Annotated[str, typer.Option(help="Item id to find neighbours of.")],
    k: Annotated[int, typer.Option(help="Items to print.")] = 10,
    alpha: Annotated[float | None, typer.Option(help="Percent from the engagement head.")] = None,
    overrides: Overrides = None,
) -> None:
    """Prints what each head and the merge return for one trigger, side by side."""
    from mtmh.serving.retriever import Retriever, retrieval_table

    config = load_config(recipe, overrides)
    retriever = Retriever.load(config.model_dir("index"))
    side_by_side = retriever.retrieve_side_by_side(trigger, k=k, alpha=alpha)
    Console().print(retrieval_table(side_by_side))


@app.command()
def evaluate(
    recipe: Recipe,
    out: Out = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="Evaluation folder of another model, shown beside; repeatable.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measures recall and topic match by the paper's protocol and writes report.html."""
    from mtmh.evaluation.evaluate import evaluate as run
    from mtmh.evaluation.results import load_evaluation, results_table

    config = load_config(recipe, overrides)
    artifact = run(config, out or config.model_dir("evaluation"), compare=compare or [])
    Console().print(results_table([load_evaluation(path) for path in (artifact.path, *(compare or []))]))
    _done("report", artifact.path / "report.html")


@app.command()
def doctor() -> None:
    """Checks that the installed packages belong together and compute."""
    from mtmh.doctor import examine, report

    if not report(examine(), Console()):
        raise typer.Exit(1)


@app.command()
def recipes() -> None:
    """Lists the recipes that ship with mtmh."""
    from mtmh.config import recipe_names

    for name in recipe_names():
        Console().print(f"{name:28} {load_config(name).description}", highlight=False)


@app.command()
def show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Prints a recipe with every setting, defaults included."""
    import yaml

    config: Config = load_config(recipe, overrides)
    Console().print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False)


def _done(what: str, where: Path) -> None:
    if os.environ.get("RANK", "0") != "0":  # one rank of torchrun speaks for all
        return
    Console().print(f"[green]wrote[/green] {what}: {where}", highlight=False, soft_wrap=True)


def main() -> None:
    """Runs the command line; what the user got wrong ends in one line and exit code 2."""
    # OpenMP threads spin at the end of a parallel region; where another process holds the core they wait for, a step
    # takes many times as long. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Importing torchrec makes torch.fx warn about an API that this program does not call.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        app()
    except ValueError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
