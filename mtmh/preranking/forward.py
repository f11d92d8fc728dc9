"""The user tower and the combination of evidence in NumPy, as service computes them: torch takes a second to import.

What they compute is said where they are trained, in `mtmh.modules.preranker` and `mtmh.modules.combination`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mtmh.data.arrays import Floats

if TYPE_CHECKING:
    from mtmh.modules.combination import Combination
    from mtmh.modules.preranker import UserTower

Weights = Mapping[str, Floats]

_CLIP = 6.0  # spreads from the mean, as in `Combination`
_SMALL = 1e-12  # least length of a direction
_LARGEST = np.float32(88.0)  # whose exponential is a float32


class UserQueries:
    """The user tower: what is known of a user to one query a task.

    Args:
        weights: the state of a `mtmh.modules.UserTower`; its precision is that of the queries.
        temperature: of that tower.

    Attributes:
        dim: width D of a direction.
    """

    def __init__(self, weights: Weights, temperature: float) -> None:
        self._layers = _Layers(weights, "mlp")
        self._mix, self._prior, self._pace = (weights[name] for name in ("mix", "prior", "pace"))
        self._temperature = temperature
        self.dim = self._layers.out_dim // len(self._prior) - 1

    @classmethod
    def of(cls, tower: UserTower) -> Self:
        """That of a trained tower, whose memory it shares."""
        return cls({name: value.detach().numpy() for name, value in tower.state_dict().items()}, tower.temperature)

    @classmethod
    def load(cls, path: Path, dim: int, hidden: Sequence[int], num_queries: int, temperature: float) -> Self:
        """Reads the weights of a tower of these measures.

        Raises:
            ValueError: the file is missing or damaged, or of another tower.
        """
        shapes = _layer_shapes("mlp", [2 * dim, *hidden, num_queries * (dim + 1)])
        shapes |= {"mix": (num_queries, 2), "prior": (num_queries,), "pace": (num_queries,)}
        return cls(_read(path, shapes), temperature)

    def __call__(self, history: Floats, trigger: Floats) -> tuple[Floats, Floats]:
        """As ``UserTower.queries``.

        Args:
            history: [M, D] means of the directions of histories.
            trigger: [M, D] directions of triggers.

        Returns:
            queries [M, K, D + K], biases [M, K].
        """
        num_queries = len(self._prior)
        learned = self._layers(np.concatenate([history, trigger], axis=1)).reshape(len(history), num_queries, -1)
        towards = self._mix @ np.stack([history, trigger], axis=1) + learned[:, :, : self.dim]
        lengths = np.maximum(np.sqrt(np.square(towards).sum(axis=2, keepdims=True)), _SMALL)
        own = np.broadcast_to(np.eye(num_queries, dtype=towards.dtype), (len(towards), num_queries, num_queries))
        biases = learned[:, :, self.dim] * self._pace + self._prior
        return np.concatenate([towards / lengths / self._temperature, own], axis=2), biases


class CombinedEvidence:
    """One logit out of many kinds of evidence about a candidate.

    Args:
        weights: the state of a `mtmh.modules.Combination`; its precision is that of the logits.
    """

    def __init__(self, weights: Weights) -> None:
        self._mean, self._scale = weights["mean"], weights["scale"]
        self._linear = _Layers({f"linear.0.{name}": weights[f"linear.{name}"] for name in ("weight", "bias")}, "linear")
        self._network = _Layers(weights, "network")

    @classmethod
    def of(cls, combination: Combination) -> Self:
        """That of a fitted combination, whose memory it shares."""
        return cls({name: value.detach().numpy() for name, value in combination.state_dict().items()})

    @classmethod
    def load(cls, path: Path, num_inputs: int, hidden: int) -> Self:
        """Reads the weights of a combination of these measures.

        Raises:
            ValueError: the file is missing or damaged, or of another combination.
        """
        shapes: dict[str, tuple[int, ...]] = {"mean": (num_inputs,), "scale": (num_inputs,)}
        shapes |= {"linear.weight": (1, num_inputs), "linear.bias": (1,)}
        if hidden:
            shapes |= _layer_shapes("network", [num_inputs, hidden, 1])
            del shapes["network.2.bias"]
        return cls(_read(path, shapes))

    def __call__(self, evidence: Floats) -> Floats:
        """Logits [...] of candidates with evidence [..., F]."""
        inputs = (evidence.reshape(-1, evidence.shape[-1]) - self._mean) * self._scale
        np.clip(inputs, -_CLIP, _CLIP, out=inputs)
        logits = self._linear(inputs)
        if self._network:
            logits += self._network(inputs)
        return logits.reshape(evidence.shape[:-1])


def probability(logits: Floats, label: int | None) -> Floats:
    """As `mtmh.modules.task_probability`: of logits [..., K, C], [..., C]."""
    engagement = sigmoid(logits[..., 0, :])
    return engagement if label is None else engagement * sigmoid(logits[..., 1 + label, :])


def sigmoid(logits: Floats) -> Floats:
    """The probabilities that logits are of; to rounding also where they are next to 0."""
    found: Floats = np.reciprocal(np.exp(np.minimum(-logits, _LARGEST)) + np.float32(1.0))
    return found


class _Layers:
    """Linear layers with a ReLU between them; the names of their weights are those of an ``nn.Sequential``."""

    def __init__(self, weights: Weights, name: str) -> None:
        numbers = sorted(
            int(key.split(".")[1]) for key in weights if key.startswith(f"{name}.") and key.endswith("weight")
        )
        self._layers = [
            (weights[f"{name}.{number}.weight"].T, weights.get(f"{name}.{number}.bias")) for number in numbers
        ]

    def __bool__(self) -> bool:
        return bool(self._layers)

    @property
    def out_dim(self) -> int:
        return int(self._layers[-1][0].shape[1])

    def __call__(self, inputs: Floats) -> Floats:
        """Outputs [N, out_dim] of inputs [N, F]."""
        for number, (weight, bias) in enumerate(self._layers):
            if number:
                np.maximum(inputs, 0.0, out=inputs)
            inputs = inputs @ weight
            if bias is not None:
                inputs += bias
        return inputs


def _layer_shapes(name: str, widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights and biases of linear layers between activations."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (width_in, width_out) in enumerate(pairwise(widths)):
        shapes |= {f"{name}.{2 * number}.weight": (width_out, width_in), f"{name}.{2 * number}.bias": (width_out,)}
    return shapes


def _read(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, npt.NDArray[np.float32]]:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: no readable safetensors: {error}") from None
    found = {name: (value.shape, value.dtype) for name, value in weights.items()}
    expected = {name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()}
    differing = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if differing:
        raise ValueError(f"{path}: not the weights of this model, differs in {', '.join(differing[:5])}")
    return weights
