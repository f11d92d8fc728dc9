"""The preranker: a multi-task user-to-item model whose item side and user side meet in one product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from .mlp import hidden_layers

if TYPE_CHECKING:  # serving needs the user tower alone, and TorchRec takes seconds to import
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    from .dense_nn import DenseNN
    from .sparse_nn import SparseNN


class UserTower(nn.Module):
    """A user's history and the trigger to one query a task.

    A query's direction is that of the history and the trigger themselves, plus what an MLP makes of both: items like
    those of the history come first from the beginning, and the MLP learns how what follows differs.

    Args:
        dim: width ``D`` of an item's direction.
        hidden: widths of the hidden layers, may be empty.
        temperature: of the cosine of query and item.
        prior: ``K`` logits to start from, one a query: the log odds of what it predicts.

    Example::

        >>> tower = UserTower(dim=4, hidden=[8], temperature=0.1, prior=[-2.0])
        >>> history, offsets, trigger = torch.tensor([0, 1, 5]), torch.tensor([0, 2, 3]), torch.tensor([1, 5])
        >>> queries, biases = tower(torch.rand(6, 4), history, offsets, trigger)
        >>> queries.shape, biases.shape
        (torch.Size([2, 1, 5]), torch.Size([2, 1]))
    """

    def __init__(self, dim: int, hidden: list[int], temperature: float, prior: list[float]) -> None:
        super().__init__()
        if min([dim, *hidden]) < 1 or temperature <= 0.0 or not prior:
            raise ValueError(
                f"UserTower: expected widths of at least 1, a temperature above 0 and a prior for each query, "
                f"got {dim}, {hidden}, {temperature}, {prior}"
            )
        widths = [2 * dim, *hidden]
        layers = hidden_layers(widths)
        last = nn.Linear(widths[-1], len(prior) * (dim + 1))
        with torch.no_grad():  # the engagement's query begins as the mix alone
            last.weight[:dim].zero_()
            last.bias[:dim].zero_()
        self.mlp = nn.Sequential(*layers, last)
        # Of history and trigger, by query: what is engaged with next is like them, what is liked need not be.
        self.mix = nn.Parameter(torch.tensor([[1.0, 1.0], *[[0.0, 0.0]] * (len(prior) - 1)]))
        self.dim = dim
        self.temperature = temperature
        self.register_buffer("prior", torch.tensor(prior))
        # The engagement's bias is a user's log partition function and must go a long way from where it starts.
        self.register_buffer("pace", torch.tensor([10.0, *[1.0] * (len(prior) - 1)]))

    def forward(self, directions: Tensor, history: Tensor, offsets: Tensor, trigger: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the queries of ``M`` users.

        Args:
            directions: [U, D] of items.
            history: [H] int64 rows of ``directions``, user after user.
            offsets: [M + 1] int64; user ``m`` has the rows from ``offsets[m]`` to before ``offsets[m + 1]``.
            trigger: [M] int64 rows of ``directions``.

        Returns:
            As `queries`.
        """
        pooled = functional.embedding_bag(history, directions, offsets, mode="mean", include_last_offset=True)
        return self.queries(pooled, directions.index_select(0, trigger))

    def queries(self, history: Tensor, trigger: Tensor) -> tuple[Tensor, Tensor]:
        """The queries of users whose histories are pooled.

        Args:
            history: [M, D] means of the directions of histories.
            trigger: [M, D] directions of triggers.

        Returns:
            queries [M, K, D + K], biases [M, K]: the logits of an item with vector ``v`` [D + K] are
            ``queries @ v + biases``.
        """
        learned = self.mlp(torch.cat([history, trigger], dim=1)).unflatten(1, (-1, self.dim + 1))
        mixed = torch.einsum("ks,msd->mkd", self.mix, torch.stack([history, trigger], dim=1))
        towards = functional.normalize(mixed + learned[:, :, : self.dim], dim=2) / self.temperature
        own = torch.eye(len(self.mix), dtype=towards.dtype, device=towards.device).expand(len(towards), -1, -1)
        biases = learned[:, :, self.dim] * self.pace + self.prior
        return torch.cat([towards, own], dim=2), biases


class Preranker(nn.Module):
    """Items to vectors, users to queries (MTMH, section 3.5: the multi-task user-to-item preranking model).

    Query 0 is for the engagement, the others are for what else may be true given an engagement: `task_probability`.

    Args:
        sparse_nn: id features to ``[B, sparse_nn.out_dim]``.
        dense_nn: float features to ``[B, dense_nn.out_dim]``.
        extra_dim: width of further item inputs, 0 allowed.
        hidden: hidden widths of the item tower and of the user tower.
        dim: width ``D`` of a direction.
        temperature: of the cosine of query and item.
        prior: see `UserTower`.

    Example::

        >>> from mtmh.modules import DenseNN, SparseNN, build_ebc
        >>> from torchrec import KeyedJaggedTensor
        >>> sparse_nn = SparseNN(build_ebc({"item_id": 10}, {"item_id": 8}), ["item_id"])
        >>> model = Preranker(sparse_nn, DenseNN(2, [4], 4), 0, [8], dim=5, temperature=0.1, prior=[-3.0, -1.0])
        >>> ids = KeyedJaggedTensor(keys=["item_id"], values=torch.tensor([1, 2, 3]), lengths=torch.tensor([1, 1, 1]))
        >>> model(ids, torch.zeros(3, 2), torch.zeros(3, 0)).shape
        torch.Size([3, 7])
    """

    def __init__(
        self,
        sparse_nn: SparseNN,
        dense_nn: DenseNN,
        extra_dim: int,
        hidden: list[int],
        dim: int,
        temperature: float,
        prior: list[float],
    ) -> None:
        super().__init__()
        self.sparse_nn = sparse_nn
        self.dense_nn = dense_nn
        widths = [sparse_nn.out_dim + dense_nn.out_dim + extra_dim, *hidden]
        layers = hidden_layers(widths)
        # Without a bias: what all items have in common changes no ranking, and the engagement's loss does not see it.
        last = nn.Linear(widths[-1], dim + len(prior), bias=False)
        # The direction begins as a projection of embeddings and further inputs, whose likeness it keeps; what the MLP
        # adds begins at zero. From a random MLP, whose outputs are all alike, training would take long to come back.
        with torch.no_grad():
            last.weight[:dim].zero_()
        self.item_mlp = nn.Sequential(*layers, last)
        self.project = nn.Linear(sparse_nn.out_dim + extra_dim, dim, bias=False)
        self.user_tower = UserTower(dim, hidden, temperature, prior)
        self.dim = dim

    def forward(self, sparse: KeyedJaggedTensor, dense: Tensor, extra: Tensor) -> Tensor:
        """Computes the vectors of ``B`` items.

        Args:
            sparse: ids of the features of ``sparse_nn.keys``, batch size ``B``.
            dense: [B, F] float features.
            extra: [B, E] further inputs.

        Returns:
            [B, D + K]: a direction of unit length, and the item's bias for each query.
        """
        pooled = self.sparse_nn(sparse).to(dense.dtype)
        vectors = self.item_mlp(torch.cat([pooled, self.dense_nn(dense), extra], dim=1))
        direction = self.project(torch.cat([pooled, extra], dim=1)) + vectors[:, : self.dim]
        return torch.cat([functional.normalize(direction, dim=1), vectors[:, self.dim :]], dim=1)


def task_probability(logits: Tensor, label: int | None) -> Tensor:
    """Probability of a task: of the engagement, times that of the label given the engagement.

    As in the entire-space model of Ma et al. (ESMM, 2018): a label is learned from engagements alone, and yet the
    product speaks of any item.

    Args:
        logits: [..., K, C] of the K queries.
        label: number of the label, from 0; ``None``: the engagement itself.

    Returns:
        [..., C].
    """
    engagement = logits[..., 0, :].sigmoid()
    return engagement if label is None else engagement * logits[..., 1 + label, :].sigmoid()
