"""Checkpoints of a content training run: what is trained, and its optimizer, in safetensors."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtmh.artifacts import Artifact, DamagedArtifactError, open_artifact, write_artifact
from mtmh.config import Config
from mtmh.content.teacher import concepts_path, encoder_config
from mtmh.data.dataset import Dataset
from mtmh.data.raw_files import stamp
from mtmh.distributed.finite import check_finite
from mtmh.distributed.ranks import Ranks, on_first

logger = logging.getLogger(__name__)

WEIGHTS = Path("weights.safetensors")
OPTIMIZER = Path("optimizer.safetensors")
# Settings that may change between a run and its resumption.
_FREE = ("checkpoint_every", "log_every", "gradient_checkpointing", "epochs", "max_steps")

Losses = list[tuple[int, float]]


def facts_of_run(
    config: Config, dataset: Dataset, pairs_of_source: dict[str, int], num_steps: int, files: Mapping[str, str]
) -> dict[str, Any]:
    """What decides which numbers a run computes, as JSON values.

    Args:
        config: the recipe; where its files are may change, what is in them may not.
        dataset: the catalogue.
        pairs_of_source: as from `open_concepts`.
        num_steps: of the whole run.
        files: as from `identity_of_files`.
    """
    assert config.content.encoder is not None
    encoder = config.content.encoder.model_dump(mode="json", exclude={"images", "concepts"})
    encoder["training"] = {name: value for name, value in encoder["training"].items() if name not in _FREE}
    return {
        "encoder": encoder,
        "seed": config.seed,
        "max_tokens": config.content.max_tokens,
        "precision": config.content.precision,
        "dataset": dataset.artifact.manifest.digest,
        "pairs_of_source": pairs_of_source,
        "num_steps": num_steps,
        **files,
    }


def identity_of_files(config: Config, dataset: Dataset) -> dict[str, str]:
    """Tells another table of concepts or other pictures, whatever their number: name of the setting -> identity.

    Concepts are told by content. Pictures, which may be terabytes, by name, size and time of change. Both are read
    from disk: one rank does it for all.
    """
    table = concepts_path(config)
    assert table is not None
    with table.open("rb") as file:
        return {
            "concepts": hashlib.file_digest(file, "sha256").hexdigest(),
            "images": identity_of_images(config, dataset),
        }


def identity_of_images(config: Config, dataset: Dataset) -> str:
    """Changes when pictures are exchanged, added or removed; those of simulated media are told by their manifest."""
    encoder = encoder_config(config)
    if encoder.image is None:
        return "unused"
    if encoder.images is None and config.media_dir.exists():
        return open_artifact(config.media_dir, "media").manifest.digest
    if encoder.images is not None:
        return stamp([encoder.images])
    names = dataset.items(["image"]).column("image")
    return stamp(Path(name) for chunk in names.iterchunks() for name in chunk.to_pylist() if isinstance(name, str))


class TrainState:
    """Writes and restores the state of one run, the same on all ranks.

    Args:
        root: the folder of the checkpoints.
        facts: as from `facts_of_run`; a checkpoint of other facts is another run's.
        parameters: what is trained, by name.
        optimizer: of these parameters.
        ranks: this process among the others; the first one writes.
    """

    def __init__(
        self,
        root: Path,
        facts: dict[str, Any],
        parameters: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
    ) -> None:
        self._root = root
        self._facts = facts
        self._parameters = parameters
        self._optimizer = optimizer
        self._ranks = ranks

    def save(self, step: int, losses: Losses) -> None:
        """Writes the state after ``step`` finished steps and removes the checkpoints before it.

        Raises:
            NonFiniteStateError: a weight or a state of the optimizer is no number; nothing is written or removed.
        """
        self.check(step)
        on_first(self._ranks, lambda: self._save(step, losses))

    def check(self, step: int) -> None:
        """Looks whether all weights and states of the optimizer are numbers after ``step`` finished steps.

        Raises:
            NonFiniteStateError: one is not.
        """
        check_finite(self._weights() | self._optimizer_state(), step)

    def restore(self) -> tuple[int, Losses]:
        """Puts the newest whole checkpoint back.

        Returns:
            The finished steps, 0 for a fresh run, and the losses logged until then.

        Raises:
            ValueError: the checkpoints are of a run with other settings or data, or do not fit the model.
        """
        path = on_first(self._ranks, self._find)
        if path is None:
            return 0, []
        summary = open_artifact(path, "checkpoint").summary
        _fill(load_file(path / WEIGHTS), {name: p.data for name, p in self._parameters.items()}, path / WEIGHTS)
        stored = load_file(path / OPTIMIZER)
        for name, parameter in self._parameters.items():
            prefix = f"{name}/"
            self._optimizer.state[parameter] = {
                key.removeprefix(prefix): value if value.dim() == 0 else value.to(parameter.device)
                for key, value in stored.items()
                if key.startswith(prefix)
            }
        return int(summary["step"]), [(int(step), float(loss)) for step, loss in summary["losses"]]

    def remove(self) -> None:
        """Removes all checkpoints, when the run is finished."""
        shutil.rmtree(self._root, ignore_errors=True)

    def _save(self, step: int, losses: Losses) -> None:
        path = self._root / f"step-{step:08d}"
        self._root.mkdir(parents=True, exist_ok=True)
        with write_artifact(path, "checkpoint", config=self._facts) as writer:
            save_file(self._weights(), writer.folder / WEIGHTS)
            save_file(self._optimizer_state(), writer.folder / OPTIMIZER)
            writer.summary |= {"step": step, "losses": losses}
        for older in self._root.iterdir():
            if older != path:
                shutil.rmtree(older)

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.data.contiguous() for name, p in self._parameters.items()}

    def _optimizer_state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value.contiguous()
            for name, p in self._parameters.items()
            for key, value in self._optimizer.state[p].items()
        }

    def _find(self) -> Path | None:
        for path in sorted(self._root.glob("step-*"), reverse=True):
            try:
                artifact = open_artifact(path, "checkpoint")
                artifact.verify()
            except DamagedArtifactError as error:
                logger.warning("DAMAGED CHECKPOINT of the content encoder skipped: %s", error)
                continue
            self._check_same_run(artifact)
            return path
        return None

    def _check_same_run(self, artifact: Artifact) -> None:
        before = artifact.manifest.config
        changed = [name for name in self._facts if before.get(name) != self._facts[name]]
        if changed:
            raise ValueError(
                f"{artifact.path}: belongs to a run with another {', '.join(changed)}; "
                f"put the settings back, or remove {self._root} to start anew"
            )


def _fill(stored: dict[str, Tensor], parameters: dict[str, Tensor], path: Path) -> None:
    if stored.keys() != parameters.keys():
        differing = sorted(stored.keys() ^ parameters.keys())[:3]
        raise ValueError(f"{path}: holds other parameters than the model trains: {', '.join(differing)}")
    for name, parameter in parameters.items():
        parameter.copy_(stored[name])
