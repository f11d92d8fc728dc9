"""A mixture of logits: several inner products of a pair of items, weighted by gates that see both of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .mlp import hidden_layers


class MixtureOfLogits(nn.Module):
    """The learned similarity of "Revisiting Neural Retrieval on Accelerators" (2306.04039) and 2407.15462.

    An embedding is cut into ``P`` components ``e_p`` of unit length. With ``l_pq = <e_p, e'_q>`` of a trigger and a
    candidate, the similarity is ``sum_pq w_pq l_pq``, ``w = softmax(silu(a(e) * b(e') + c(l)))``, where ``a``, ``b``
    and ``c`` are networks of one hidden layer. It is no inner product of two vectors, so an index of vectors cannot
    search by it.

    Args:
        dim: width ``D`` of embeddings.
        num_components: ``P``.
        hidden: width of the hidden layer of each gating network.

    Raises:
        ValueError: the components do not divide the width.

    Example::

        >>> MixtureOfLogits(dim=8, num_components=2, hidden=4)(torch.ones(3, 8), torch.ones(5, 8)).shape
        torch.Size([3, 5])
    """

    def __init__(self, dim: int, num_components: int, hidden: int) -> None:
        super().__init__()
        if dim % num_components:
            raise ValueError(f"MixtureOfLogits: expected a width that {num_components} components divide, got {dim}")
        self.num_components = num_components
        num_logits = num_components**2

        def gate(width: int) -> nn.Sequential:
            return nn.Sequential(*hidden_layers([width, hidden]), nn.Linear(hidden, num_logits))

        self.trigger_gate, self.candidate_gate, self.pair_gate = gate(dim), gate(dim), gate(num_logits)

    def components(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, D]`` to components ``[B, P, D / P]`` of unit length."""
        return functional.normalize(embeddings.reshape(len(embeddings), self.num_components, -1), dim=2)

    def forward(self, triggers: Tensor, candidates: Tensor) -> Tensor:
        """Maps embeddings ``[M, D]`` and ``[N, D]`` to similarities ``[M, N]``, from -1 to 1.

        Holds some tensors of ``[M, N, P * P]``: ask for few triggers at a time.
        """
        logits = torch.einsum("mpd,nqd->mnpq", self.components(triggers), self.components(candidates)).flatten(2)
        gates = self.trigger_gate(triggers)[:, None] * self.candidate_gate(candidates) + self.pair_gate(logits)
        return (functional.silu(gates).softmax(dim=2) * logits).sum(dim=2)
