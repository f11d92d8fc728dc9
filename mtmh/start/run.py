"""Runs every stage of a recipe in this process, one after the other; what is unchanged is skipped, as a chain does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

from mtmh.artifacts import Artifact
from mtmh.chain.duration import duration
from mtmh.chain.gates import GATES, published_index
from mtmh.chain.stages import Say, examine, set_checkpoints_aside, stages_of
from mtmh.chain.state import ChainState, StageState, only_chain
from mtmh.config import Config, StageName
from mtmh.data.raw_files import stamp
from mtmh.index.versions import publish


def run_stages(config: Config, say: Say, *, until: StageName = "evaluate") -> dict[StageName, Artifact]:
    """Brings the artifacts of a recipe up to date and publishes its index.

    Progress of a stage goes to the terminal, as its verb shows it.

    Args:
        config: the recipe.
        say: takes a line about each stage.
        until: the last stage.

    Returns:
        The artifact of each stage.

    Raises:
        ValueError: data or settings do not fit, or a gate of the recipe is missed; the message says which.
    """
    with only_chain(config.model_dir("chain")):
        return _run(config, say, until)


def _run(config: Config, say: Say, until: StageName) -> dict[StageName, Artifact]:
    noted = config.model_dir("chain")
    state = ChainState.load(noted)
    if state.running:
        say(f"{state.running}: the run before was killed in it, by somebody, or by the system where memory is short")
        state.running = ""
    found: dict[StageName, Artifact] = {}
    for stage in stages_of(config):
        inputs = {name: found[source] for name, source in stage.inputs.items()}
        finding = examine(stage, config, inputs, state, just_ran=False)
        if finding.reasons:
            say(f"{stage.name}: {'; '.join(finding.reasons)}")
            aside = set_checkpoints_aside(stage, config, inputs, state)
            if aside is not None:
                say(f"{stage.name}: another run; the checkpoints of the one before are in {aside}")
            files = stamp(stage.files(config))
            begun = perf_counter()
            with _noted(stage.name, state, noted):
                if stage.name == "evaluate":
                    _evaluate(config, found["build_index"])
                else:
                    _STAGES[stage.name](config)
            finding = examine(stage, config, inputs, state, just_ran=True)
            if finding.reasons:
                raise ValueError(f"{stage.name} has run, but {'; '.join(finding.reasons)}")
            say(f"{stage.name}: took {duration(perf_counter() - begun)}")
        else:
            files = stamp(stage.files(config))
            say(f"{stage.name}: unchanged")
        assert finding.artifact is not None
        found[stage.name] = finding.artifact
        state.stages[stage.name] = StageState(digest=finding.artifact.manifest.digest, files=files)
        state.save(noted)
        if stage.name in ("content_check", "build_index"):
            verdict = GATES[stage.name](config, finding.artifact, None)
            if not verdict.passed:
                raise ValueError(f"gate missed: {verdict.gate}. {'; '.join(verdict.figures)}")
        if stage.name == "build_index":
            _publish(config, finding.artifact, state, say)
        if stage.name == until:
            break
    return found


@contextmanager
def _noted(stage: StageName, state: ChainState, folder: Path) -> Iterator[None]:
    """Keeps on disk which stage runs: a process that is killed can say nothing, the next one can."""
    state.running = stage
    state.save(folder)
    try:
        yield
    finally:
        state.running = ""
        state.save(folder)


def _publish(config: Config, index: Artifact, state: ChainState, say: Say) -> None:
    """Makes the index the one that requests are answered from, unless somebody has taken it back."""
    published, digest = published_index(config), index.manifest.digest
    if published is not None and published.manifest.digest == digest:
        return
    if digest in state.published:
        say(f"build_index: {index.path.name} was taken back and stays so; mtmh index publish brings it back")
        return
    settings = config.index
    publish(index.path, min_recall=settings.min_recall, keep=settings.keep_versions, milvus=settings.milvus)
    state.published.append(digest)
    state.save(config.model_dir("chain"))
    say(f"build_index: {index.path.name} is published and can be served from now on")


def _prepare(config: Config) -> None:
    from mtmh.prepare.prepare import prepare

    prepare(config, config.dataset_dir)


def _simulate(config: Config) -> None:
    from mtmh.prepare.sources.synthetic_media import write_media

    write_media(config, config.media_dir)


def _train_content(config: Config) -> None:
    from mtmh.content.train import train_content

    train_content(config, config.encoder_dir)


def _check_content(config: Config) -> None:
    from mtmh.content.check import check_content

    check_content(config, config.paths.root / "content-check")


def _embed_content(config: Config) -> None:
    from mtmh.content.embed import embed_content

    embed_content(config, config.content_dir)


def _train(config: Config) -> None:
    from mtmh.training.trainer import train

    train(config)


def _embed(config: Config) -> None:
    from mtmh.tower.embed import embed_catalogue

    embed_catalogue(config, config.model_dir("embeddings"))


def _train_preranker(config: Config) -> None:
    from mtmh.preranking.export import write_preranker
    from mtmh.preranking.trainer import train_preranker

    train_preranker(config)
    write_preranker(config, config.model_dir("preranker"))


def _build_index(config: Config) -> None:
    from mtmh.index.build import build_version

    build_version(config, publish=False)


def _evaluate(config: Config, index: Artifact) -> None:
    from mtmh.evaluation.evaluate import evaluate

    evaluate(config, config.model_dir("evaluation"), index=index.path)


_STAGES: dict[StageName, Callable[[Config], None]] = {
    "prepare": _prepare,
    "content_simulate": _simulate,
    "content_train": _train_content,
    "content_check": _check_content,
    "content_embed": _embed_content,
    "train": _train,
    "embed": _embed,
    "train_preranker": _train_preranker,
    "build_index": _build_index,
}
