"""The stages of a recipe: what each writes, what it is made from, and whether that is still so.

A stage is unchanged when its artifact is whole, was made by the code that the stage would run now, from the inputs that
are there now (by digest), and with the same values of the settings that the stage reads. All of this is in manifests,
so it does not matter whether a chain or a person ran the stage. Only two facts are in no manifest, and kept by the
chain (``state.py``): that a training run came to its end, and which raw files a dataset was read from.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mtmh.artifacts import Artifact, DamagedArtifactError, Kind, code_of, open_artifact
from mtmh.chain.state import ChainState
from mtmh.config import Config, StageName, decisive
from mtmh.config.base import Decided
from mtmh.config.recorded import recorded_decisive
from mtmh.data.raw_files import changed_since, stamp
from mtmh.index.artifact import IndexSummary
from mtmh.index.versions import find_version, list_versions
from mtmh.places import AnyPath, LakeTable, find_files
from mtmh.training.newest import last_without_end, newest_first

PREVIOUS = "previous"  # the checkpoint that training continued from, among the inputs in its manifest

Find = Callable[[Config], list[Path]]
Say = Callable[[str], None]  # takes a line about a stage


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: also that of its component, ``mtmh.NAME``.
        kind: of its artifact.
        find: the folders where its artifact may be, the likeliest first.
        inputs: name of an input in its manifest -> the stage that makes it.
        files: raw files and folders that it reads.
    """

    name: StageName
    kind: Kind
    find: Find
    inputs: dict[str, StageName] = field(default_factory=dict)
    files: Callable[[Config], Sequence[AnyPath | LakeTable]] = lambda _: []


@dataclass(frozen=True)
class Finding:
    """The outcome of a look at a stage's artifact.

    Attributes:
        artifact: of the stage, whole but perhaps outdated; None: there is none.
        reasons: why the stage must run; empty: it is unchanged.
    """

    artifact: Artifact | None
    reasons: list[str]


def stages_of(config: Config) -> list[Stage]:
    """The stages that a recipe needs, each after those it reads from."""
    with_content: dict[str, StageName] = {"content": "content_embed"} if config.needs_content else {}
    learned = config.retrieval.needs_preranker
    preranker: dict[str, StageName] = {"preranker": "train_preranker"} if learned else {}
    return [
        Stage("prepare", "dataset", lambda c: [c.dataset_dir], files=_raw_data),
        *(_content_stages(config) if config.needs_content else []),
        Stage(
            "train",
            "checkpoint",
            lambda c: newest_first(c.model_dir("checkpoints"))[:1],
            inputs={"dataset": "prepare", **with_content},
        ),
        Stage(
            "embed",
            "embeddings",
            lambda c: [c.model_dir("embeddings")],
            inputs={"dataset": "prepare", "checkpoint": "train"},
        ),
        *([_preranker(config)] if learned else []),
        Stage(
            "build_index",
            "index",
            _index_versions,
            inputs={"dataset": "prepare", "embeddings": "embed", **preranker},
        ),
        Stage(
            "evaluate",
            "evaluation",
            lambda c: [c.model_dir("evaluation")],
            inputs={"dataset": "prepare", "index": "build_index", **preranker},
        ),
    ]


def examine(
    stage: Stage, config: Config, inputs: Mapping[str, Artifact], state: ChainState, *, just_ran: bool
) -> Finding:
    """Looks whether a stage must run.

    Args:
        stage: the stage.
        config: the recipe as it is now.
        inputs: the artifacts that the stage would read, by their name in its manifest.
        state: what earlier chains noted.
        just_ran: its job has ended with success: what no manifest tells is taken from that.
    """
    finding = Finding(None, ["nothing there yet"])
    for path in stage.find(config):
        try:
            artifact = open_artifact(path, stage.kind)
        except ValueError as error:
            if path.exists() and any(path.iterdir()):
                finding = finding if finding.artifact else Finding(None, [str(error)])
            continue
        reasons = [*_reasons(stage, config, artifact, inputs), *_too_few_probes(stage, config, artifact)]
        # A training run that goes on, and was at its end before the code changed, writes no new checkpoint.
        if not (just_ran and stage.name == "train"):
            reasons += _other_code(config, artifact)
        if not just_ran:
            reasons += _unknown_to_manifests(stage, config, artifact, state)
        if not reasons:
            return Finding(artifact, [])
        if finding.artifact is None:
            finding = Finding(artifact, reasons)
    return finding


def _too_few_probes(stage: Stage, config: Config, artifact: Artifact) -> list[str]:
    """The reason to build an index anew whose probes were chosen for a lower recall than is wanted now."""
    if stage.name != "build_index" or config.retrieval.num_probes != "auto":
        return []
    before, now = artifact.manifest.config["index"]["min_recall"], config.index.min_recall
    if before >= now:
        return []
    found = IndexSummary.model_validate(artifact.summary).ann_recall.values()
    missed = any(measured.recall < now for measured in found)
    return [f"index.min_recall was {before}, is {now}, which its probes do not reach"] if missed else []


def outlived_checkpoints(
    stage: Stage, config: Config, inputs: Mapping[str, Artifact], state: ChainState
) -> Path | None:
    """The folder of checkpoints from which a stage cannot go on: other data, or settings that decide numbers.

    So are those of a run that other code has brought to its end; one that was interrupted goes on with the code of now.

    None: the stage trains nothing, has not begun, or goes on from its newest checkpoint or the one before.

    Raises:
        ValueError: the newest is of another format, or no checkpoint, where training stops as well.
    """
    if stage.name not in ("train", "train_preranker"):
        return None
    folder, kind, training = config.model_dir("checkpoints"), _TOWER, config.training
    if stage.name == "train_preranker":
        folder, kind, training = config.preranker_checkpoints, _PRERANKER, config.preranker.training
    try:
        latest = [open_artifact(path, "checkpoint") for path in newest_first(folder)[:1]]
    except DamagedArtifactError:  # training goes back to the one before
        return None
    for checkpoint in latest:
        recorded = checkpoint.manifest.config
        before = (recorded if stage.name == "train" else recorded["preranker"])["training"]
        now = training.model_dump()
        # A run of a given length may have gone beyond the one that a choice would find.
        chosen_now = len(_limits_of(now)) > len(_limits_of(before))
        shorter = chosen_now or any(_limit(before, key) > _limit(now, key) for key in _limits_of(now))
        others = checkpoint.manifest.inputs != {name: artifact.manifest.digest for name, artifact in inputs.items()}
        if shorter or others or _changes(recorded_decisive(checkpoint, kind), decisive(config, kind)):
            return folder
        if any(_other_code(config, made) for made in _made_by_end(stage, config, checkpoint, state)):
            return folder
    return None


def set_checkpoints_aside(
    stage: Stage, config: Config, inputs: Mapping[str, Artifact], state: ChainState
) -> Path | None:
    """Moves the checkpoints away from which a new run of training would refuse to go on.

    Returns:
        Where they are now; None: there are none.

    Raises:
        ValueError: as `outlived_checkpoints`.
    """
    folder = outlived_checkpoints(stage, config, inputs, state)
    if folder is None:
        return None
    aside = folder.with_name(f"{folder.name}.before")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


_LIMITS = ("epochs", "max_steps")
_LIMITS_OF_CHOICE = ("max_epochs", "patience")  # where the length is chosen by measuring
_TOWER: Decided = "checkpoint"
_PRERANKER: Decided = "preranker-checkpoint"


def _content_stages(config: Config) -> list[Stage]:
    """The teacher: a trained encoder is checked before it embeds, any other by what it embedded."""
    gated = any(
        value is not None for name, value in config.content.check.model_dump().items() if name.startswith("min_")
    )
    trained = config.content.kind == "encoder"
    teacher: dict[str, StageName] = {"encoder": "content_train"} if trained else {"content": "content_embed"}
    check = Stage(
        "content_check",
        "check",
        lambda c: [c.paths.root / "content-check"],
        inputs={"dataset": "prepare", **teacher},
    )
    embed = Stage(
        "content_embed",
        "content",
        lambda c: [c.content_dir],
        inputs={"dataset": "prepare", **(teacher if trained else {})},
    )
    checks = [check] if gated else []
    if config.content.encoder is None:
        return [embed, *checks]
    simulated = config.data.source == "synthetic" and config.content.encoder.concepts is None
    media: dict[str, StageName] = {"media": "content_simulate"} if simulated else {}
    draw = Stage("content_simulate", "media", lambda c: [c.media_dir], inputs={"dataset": "prepare"})
    train = Stage(
        "content_train",
        "encoder",
        lambda c: [c.encoder_dir],
        inputs={"dataset": "prepare", **media},
        files=_content_files,
    )
    return [*([draw] if simulated else []), train, *checks, embed]


def _preranker(config: Config) -> Stage:
    embeddings: dict[str, StageName] = {"embeddings": "embed"} if config.preranker.head_embeddings else {}
    return Stage(
        "train_preranker",
        "preranker",
        lambda c: [c.model_dir("preranker")],
        inputs={"dataset": "prepare", **embeddings},
    )


def _reasons(stage: Stage, config: Config, artifact: Artifact, inputs: Mapping[str, Artifact]) -> Iterator[str]:
    manifest = artifact.manifest
    for name, used in inputs.items():
        if manifest.inputs.get(name) != used.manifest.digest:
            yield f"made from another {name}"
    if stage.name == "train":
        if PREVIOUS in manifest.inputs.keys() - inputs.keys():
            yield "continued from an earlier model, and none is given now"
        by_hand = config.trains_without_end and not config.training.chooses_length
        if by_hand and last_without_end(config.model_dir("checkpoints")) is None:
            yield "no model as long that has not seen the end of T1, by which the preranker weighs what the heads say"
    before = recorded_decisive(artifact, stage.kind) | _lengths(stage, manifest.config)
    yield from _changes(before, decisive(config, stage.kind) | _lengths(stage, config.model_dump(mode="json")))


def _lengths(stage: Stage, config: Mapping[str, Any]) -> dict[str, Any]:
    """The length of a stage's training, by dotted key: no part of the identity of a run that goes on."""
    sections = {"train": "training", "train_preranker": "preranker.training"}
    if stage.name not in sections:
        return {}
    below: Any = config
    for part in sections[stage.name].split("."):
        below = below[part]
    return {f"{sections[stage.name]}.{key}": below.get(key) for key in _limits_of(below)}


def _limits_of(training: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of a section that say how long a run is."""
    chosen = training.get("epochs") == "auto" and training.get("max_steps") is None
    return (*_LIMITS, *_LIMITS_OF_CHOICE) if chosen else _LIMITS


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} was {before.get(key, 'not set')}, is {now.get(key, 'not set')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, "not set") != now.get(key, "not set")
    ]


def _other_code(config: Config, artifact: Artifact) -> list[str]:
    made_by, this = artifact.manifest.code, code_of(artifact.manifest.kind)
    if config.chain.ignore_code or made_by == this:
        return []
    return [f"made by other code of mtmh ({made_by[:12] or 'not noted'}) than this ({this[:12]})"]


def _made_by_end(stage: Stage, config: Config, checkpoint: Artifact, state: ChainState) -> list[Artifact]:
    """The artifact that a run has made, if this checkpoint is known to be its last one."""
    digest = checkpoint.manifest.digest
    if stage.name == "train":
        noted = state.stages.get(stage.name)
        return [checkpoint] if noted is not None and noted.digest == digest else []
    try:
        made = [open_artifact(path, stage.kind) for path in stage.find(config)]
    except ValueError:  # no preranker yet
        return []
    return [artifact for artifact in made if artifact.manifest.inputs.get("checkpoint") == digest]


def _unknown_to_manifests(stage: Stage, config: Config, artifact: Artifact, state: ChainState) -> list[str]:
    noted = state.stages.get(stage.name)
    known = noted is not None and noted.digest == artifact.manifest.digest
    if stage.name == "train" and not known:
        return ["not known to have come to its end"]
    files = stage.files(config)
    if not files:
        return []
    if known:
        assert noted is not None
        return [] if noted.files == stamp(files) else ["raw files have changed"]
    made_at = datetime.fromisoformat(artifact.manifest.created_at).timestamp()
    newer = changed_since(files, made_at)
    return [f"{newer} is newer"] if newer else []


def _raw_data(config: Config) -> list[AnyPath | LakeTable]:
    """The folder of the input; without one, the files that the patterns of the tables find; and tables of a lake."""
    data = config.data
    found: list[AnyPath | LakeTable] = [] if data.input is None else [data.input]
    for place in (*data.events, *data.items):
        if isinstance(place, LakeTable):
            found.append(place)
        elif data.input is None:
            found += find_files(None, place)
    return found


def _content_files(config: Config) -> list[Path]:
    encoder = config.content.encoder
    return [path for path in (encoder.images, encoder.concepts) if path is not None] if encoder else []


def _index_versions(config: Config) -> list[Path]:
    """All versions, the newest first: an unpublished one that was built from the same inputs will do."""
    folder = config.model_dir("index")
    if not folder.is_dir():
        return []
    return [find_version(folder, version.name) for version in list_versions(folder)]


def _limit(training: Mapping[str, Any], key: str) -> float:
    value = training.get(key)
    return math.inf if value is None or value == "auto" else float(value)
