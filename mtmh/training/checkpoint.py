"""Checkpoints of a run: one artifact folder every so many steps, and the way back from the newest that is whole."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from mtmh.artifacts import Artifact, ArtifactWriter, DamagedArtifactError, FileRecord, open_artifact
from mtmh.config.base import leaves
from mtmh.config.recorded import recorded_decisive
from mtmh.data.dataset import Dataset
from mtmh.data.schema import VOCABULARY
from mtmh.distributed.content_table import CONTENT_ROWS
from mtmh.distributed.finite import check_finite
from mtmh.distributed.optimizers import TABLE_KEY
from mtmh.distributed.ranks import PATIENCE, Ranks, on_all, on_first
from mtmh.distributed.state_files import State, begin_write_state, own_files, read_state, stored_names, write_state
from mtmh.training.newest import newest_first, open_checkpoint

logger = logging.getLogger(__name__)

STATE = "state"  # the folder of tensors inside an artifact
# Beginnings of names in the state.
MODEL = "model."
TASK = (MODEL, "loss.")  # what `TrainTask` holds
OPTIMIZER = "optimizer."
RANDOM = "random."  # a rank's own


class Part(Protocol):
    """Something besides model and optimizer whose state training changes, see `Checkpoints.add`."""

    def state(self) -> State:
        """The tensors as they are now, of sizes that do not change; `Checkpoints.restore` fills them in place.

        A plain tensor is the same on all ranks. What a rank alone holds is a ShardedTensor or DTensor, so that
        another number of ranks can load it.
        """
        ...

    def restored(self) -> None:
        """Called when the tensors of `state` have been filled."""
        ...


@dataclass(frozen=True)
class RunRecord:
    """Facts of a run that each of its checkpoints records; a run of other settings or inputs does not go on from there.

    Attributes:
        settings: JSON values, recorded in the manifest.
        decisive: those that decide which numbers the run computes, by dotted key.
        inputs: the artifacts that the run reads, by name.
        recorded: the decisive settings of the run that wrote a checkpoint.
        facts: more for the summary of every checkpoint, JSON values only; may grow while the run goes on.
        folders: copied into every checkpoint under their names.
        records: of the files in them, where their artifact has read them already: at two billion items 17 to 40 GB.
    """

    settings: Mapping[str, Any]
    decisive: Mapping[str, Any]
    inputs: Mapping[str, Artifact]
    recorded: Callable[[Artifact], Mapping[str, Any]] = lambda checkpoint: checkpoint.manifest.decisive
    facts: dict[str, Any] = field(default_factory=dict)
    folders: Mapping[Path, Path] = field(default_factory=dict)
    records: Mapping[str, FileRecord] = field(default_factory=dict)

    @classmethod
    def of_dataset(
        cls,
        settings: Mapping[str, Any],
        decisive: Mapping[str, Any],
        dataset: Dataset,
        inputs: Mapping[str, Artifact],
        kind: Literal["checkpoint", "preranker-checkpoint"] = "checkpoint",
    ) -> Self:
        """The record of a run over a dataset.

        Args:
            settings: the whole recipe, as JSON values.
            decisive: what of it decides the run (`mtmh.config.decisive`).
            dataset: its features and vocabularies go along: a run of the next period finds the rows of its values by
                these, when this dataset may be gone.
            inputs: the artifacts that the run reads, by name.
            kind: whose settings decide.
        """
        return cls(
            settings=settings,
            decisive=decisive,
            inputs=inputs,
            recorded=partial(recorded_decisive, kind=kind),
            facts={"features": dataset.summary.features.model_dump(mode="json")},
            folders={VOCABULARY: dataset.artifact.path / VOCABULARY},
            records={
                name: record
                for name, record in dataset.artifact.manifest.files.items()
                if Path(name).is_relative_to(VOCABULARY)
            },
        )


class Checkpoints:
    """Writes and restores the state of one run, on all ranks together.

    Args:
        root: the folder that holds ``step-00000100`` and so on.
        run: tells this run from others.
        ranks: this process among the others.
        keep: so many of the newest stay.

    Attributes:
        root: as given.
    """

    def __init__(self, root: Path, run: RunRecord, ranks: Ranks, keep: int = 2) -> None:
        self.root = root
        self._run = run
        self._ranks = ranks
        self._keep = keep
        self._parts: dict[str, Part] = {}
        self._group: dist.ProcessGroup | None = None  # of saving in the background
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mtmh-checkpoint")
        self._behind: tuple[Path, Future[Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets a save in the background end; after an error its own failure is only logged."""
        if error is None:
            self.wait()
        elif self._behind is not None and (failure := self._behind[1].exception()):
            logger.warning("CHECKPOINT NOT WRITTEN: %s: %s", self._behind[0], failure)
        self._thread.shutdown()

    def add(self, name: str, part: Part) -> None:
        """From now on the state of ``part`` is saved and restored too, under names that begin with ``name``.

        When `save` is called the pipeline is empty: nothing of a step after ``step`` has gone through the model. The
        loader's thread is ahead.
        """
        assert f"{name}." not in (*TASK, OPTIMIZER, RANDOM), name
        assert name not in self._parts, name
        self._parts[name] = part

    def find(self, resume: bool) -> Path | None:
        """The checkpoint to go on from; ``None``: a fresh run.

        A newest one whose files are missing, truncated or altered is set aside under the name ``*.damaged``, and the
        one before it is taken.

        Raises:
            ValueError: ``resume`` is off and there are checkpoints, all are damaged, or the newest whole one is of
                another format, or of a run with other settings or data (the message names them).
        """
        found = on_first(self._ranks, lambda: self._all(resume))
        for path in found:
            if self._may_go_on_from(path):
                return path
        if found:
            raise ValueError(
                f"{self.root}: all checkpoints are damaged (set aside as *.damaged); remove the folder to start anew"
            )
        return None

    def save(self, step: int, trained: State, *, behind: bool = False) -> Path:
        """Writes the state after ``step`` finished steps; the folder appears when all ranks have written.

        Args:
            step: finished steps.
            trained: weights and optimizer state, as of `training_state`; the parts are added.
            behind: return when the state is copied, and write in the background. A failure is raised by the next
                `save` or `wait`. One save at a time: a second one waits for the first.

        Raises:
            ValueError: the folder is taken by something that is no checkpoint.
            OSError: the files could not be written, now or in the background before.
            NonFiniteStateError: a value is infinite or not a number; nothing is written.
        """
        self.wait()
        state = self._with_parts(trained)
        check_finite(state, step)  # a run could never go on from such a checkpoint
        path = self.root / f"step-{step:08d}"
        writer: list[ArtifactWriter] = []  # filled on the first rank only

        def begin() -> Path:
            writer.append(ArtifactWriter(path, "checkpoint"))
            writer[0].begin()
            return writer[0].folder / STATE

        def commit(records: Mapping[str, FileRecord]) -> Path:
            writer[0].summary |= {
                "step": step,
                "world_size": self._ranks.world_size,
                **self._run.facts,
            }
            for name, source in self._run.folders.items():
                if source.is_dir():  # copied: a fault of the disk in a file that all share would spoil all
                    shutil.copytree(source, writer[0].folder / name)
            known = {**self._run.records, **records}
            writer[0].commit(self._run.settings, self._run.inputs, known, decisive=self._run.decisive)
            self._remove_old()
            return path

        folder = on_first(self._ranks, begin)
        state |= self._random_state()
        if not behind:
            write_state(state, folder)
            records = self._read_back(folder)
            return on_first(self._ranks, lambda: commit(records))
        self._group = self._group or dist.new_group(backend="gloo", timeout=PATIENCE)
        written = begin_write_state(state, folder, self._group)

        def end() -> None:
            written.result()
            records = self._read_back(folder, self._group)
            if self._ranks.is_first:
                commit(records)

        self._behind = (path, self._thread.submit(end))
        return path

    def _read_back(self, folder: Path, group: dist.ProcessGroup | None = None) -> dict[str, FileRecord]:
        """Sizes and digests of the files of all ranks, each read by the rank that has just written it."""

        def own() -> dict[str, FileRecord]:
            files = folder.glob(own_files(self._ranks.rank))
            return {f"{STATE}/{file.name}": FileRecord.of(file) for file in files}

        return {name: record for records in on_all(own, group) for name, record in records.items()}

    def wait(self) -> None:
        """Waits for a save in the background; all ranks call it together.

        Raises:
            OSError: the files could not be written.
        """
        if self._behind is None:
            return
        path, end = self._behind
        self._behind = None
        failures: list[str | None] = [None] * self._ranks.world_size
        failure = end.exception()
        dist.all_gather_object(failures, None if failure is None else f"{type(failure).__name__}: {failure}")
        found = next((text for text in failures if text is not None), None)
        if found is not None:
            raise OSError(f"{path}: the checkpoint could not be written in the background: {found}") from failure

    def restore(self, path: Path, trained: State) -> int:
        """Puts weights, optimizer state, parts and random state back.

        The random state is a rank's own; on another number of ranks each goes on with a fresh one.

        Args:
            path: folder of one checkpoint.
            trained: as for `save`, filled in place.

        Returns:
            The number of finished steps.

        Raises:
            ValueError: the files do not hold exactly the state of this model and optimizer.
        """
        artifact = open_checkpoint(path)
        folder = path / STATE
        random_state = self._random_state()
        stored = stored_names(folder)
        same_ranks = random_state.keys() <= stored
        prefixes = {f"{name.partition('.')[0]}." for name in stored} - {RANDOM}
        read_state(self._with_parts(trained), folder, prefixes=tuple(prefixes))
        for part in self._parts.values():
            part.restored()
        if same_ranks:
            read_state(random_state, folder, prefixes=(RANDOM,))
            _set_random_state(random_state, self._ranks)
        return int(artifact.summary["step"])

    def _with_parts(self, trained: State) -> State:
        parts = {f"{name}.{key}": value for name, part in self._parts.items() for key, value in part.state().items()}
        return trained | parts

    def _all(self, resume: bool) -> list[Path]:
        found = newest_first(self.root)
        if found and not resume:
            raise ValueError(
                f"{self.root}: holds checkpoints up to {found[0].name}; resume, choose another name or paths.root, or "
                f"remove the folder to start anew"
            )
        return found

    def _may_go_on_from(self, path: Path) -> bool:
        """Checks that a checkpoint is whole, each rank reading a part of its files; sets a damaged one aside."""
        rank, world_size = self._ranks.rank, self._ranks.world_size
        try:
            artifact = on_first(self._ranks, lambda: self._repaired(path))
            on_all(lambda: artifact.verify(rank, world_size))
        except DamagedArtifactError as error:
            why = str(error)
            on_first(self._ranks, lambda: _set_aside(path, why))
            return False
        on_first(self._ranks, lambda: self._check_same_run(artifact))
        return True

    def _repaired(self, path: Path) -> Artifact:
        """Opens a checkpoint after altered files of `RunRecord.folders` are replaced by equal ones of their source."""
        artifact = open_artifact(path, "checkpoint", sizes=False)
        for name, source in self._run.folders.items():
            for file, record in artifact.manifest.files.items():
                if not Path(file).is_relative_to(name) or _is_whole(path / file, record):
                    continue
                whole = source / Path(file).relative_to(name)
                if _is_whole(whole, record):
                    aside = path / f"{file}.partial"
                    shutil.copyfile(whole, aside)
                    aside.replace(path / file)
                    logger.warning("DAMAGED FILE %s of a checkpoint replaced by an equal one, %s", path / file, whole)
        return open_checkpoint(path)

    def _check_same_run(self, artifact: Artifact) -> None:
        before, now = self._run.recorded(artifact), self._run.decisive
        changed = [
            f"{key} was {before.get(key, 'absent')}, is {now.get(key, 'absent')}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key, "absent") != now.get(key, "absent")
        ]
        digests = {name: used.manifest.digest for name, used in self._run.inputs.items()}
        for name in sorted(digests.keys() | artifact.manifest.inputs.keys()):
            if name not in digests:
                changed.append(f"it used a {name} artifact, which is not given now")
            elif name not in artifact.manifest.inputs:
                changed.append(f"it used no {name} artifact, and one is given now")
            elif digests[name] != artifact.manifest.inputs[name]:
                changed.append(f"the {name} artifact is another one")
        if changed:
            raise ValueError(
                f"{artifact.path}: cannot go on from here, the run was another one: {'; '.join(changed)}. "
                f"Put the settings back, or train under another name"
            )

    def _random_state(self) -> State:
        ranks = self._ranks
        key = f"{RANDOM}{ranks.rank}_of_{ranks.world_size}"
        state = {f"{key}.cpu": torch.get_rng_state()}
        if ranks.device.type == "cuda":
            state[f"{key}.cuda"] = torch.cuda.get_rng_state(ranks.device)
        return state

    def _remove_old(self) -> None:
        """Keeps the newest; also clears what interrupted writers and removals left."""
        for path in newest_first(self.root)[self._keep :]:
            path.rename(path.with_name(f".{path.name}.old"))
        for pattern in (".step-*.old", ".step-*.partial"):
            for rest in self.root.glob(pattern):
                shutil.rmtree(rest)


def training_state(model: DistributedModelParallel, optimizer: CombinedOptimizer) -> State:
    """All tensors that training changes, by name; they share memory with model and optimizer."""
    frozen = f"{TABLE_KEY}{CONTENT_ROWS}."
    state: State = {name: value for name, value in model.state_dict().items() if frozen not in name}
    assert all(name.startswith(TASK) for name in state)
    for parameter, entries in optimizer.state_dict()["state"].items():
        for name, value in leaves(entries):
            assert isinstance(value, Tensor), f"{parameter} {name}: {type(value).__name__}"
            state[f"{OPTIMIZER}{parameter}.{name}"] = value
    return state


def _is_whole(path: Path, record: FileRecord) -> bool:
    return path.is_file() and FileRecord.of(path) == record


def _set_aside(path: Path, why: str) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    logger.warning("DAMAGED CHECKPOINT set aside as %s, going back to the one before it: %s", aside, why)


def _set_random_state(state: State, ranks: Ranks) -> None:
    for name, value in state.items():
        if name.endswith(".cuda"):
            torch.cuda.set_rng_state(value, ranks.device)
        else:
            torch.set_rng_state(value)
