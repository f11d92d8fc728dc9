"""A click model of our own: our users' tables beside mtmh's item tower, one TorchRec model."""

from __future__ import annotations

import torch
from mtmh.modules import MTMH
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.sparse.jagged_tensor import KeyedTensor

USER_KEYS = ["user_id", "country"]


class ClickModel(nn.Module):
    """Scores <user, item>: a user vector of our own against one head of the item tower.

    Args:
        item_tower: of mtmh, new or the one of a checkpoint.
        head: name of the head that the user vector meets.
        num_users: rows of the table ``user_id``.
        num_countries: rows of the table ``country``.
        dim: width of both tables.
    """

    def __init__(self, item_tower: MTMH, head: str, num_users: int, num_countries: int, dim: int) -> None:
        super().__init__()
        self.item_tower = item_tower
        self.head = head
        rows = {"user_id": num_users, "country": num_countries}
        self.user_ebc = EmbeddingBagCollection(
            device=torch.device("meta"),  # the sharder allocates each rank's part
            tables=[
                EmbeddingBagConfig(name=key, feature_names=[key], num_embeddings=rows[key], embedding_dim=dim)
                for key in USER_KEYS
            ],
        )
        self.user_mlp = nn.Linear(len(USER_KEYS) * dim, item_tower.head_dim)

    def forward(self, users: KeyedJaggedTensor, items: KeyedJaggedTensor, item_floats: Tensor) -> Tensor:
        """Logits [B] of a click.

        Args:
            users: ``USER_KEYS``, B bags each.
            items: the id features of the tower, B bags each.
            item_floats: [B, F] float features of the tower.
        """
        user = self.user_mlp(KeyedTensor.regroup([self.user_ebc(users)], [USER_KEYS])[0])
        item = self.item_tower(items, item_floats)[self.head]
        return (user * item).sum(dim=1)
