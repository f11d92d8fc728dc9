"""SparseNN: id features of an item to pooled embeddings, through any TorchRec embedding bag collection."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

INIT_SCALE = 0.5


def build_ebc(
    rows: dict[str, int],
    dims: dict[str, int],
    data_type: DataType = DataType.FP32,
    device: torch.device | str = "cpu",
) -> EmbeddingBagCollection:
    """One mean-pooled table for each id feature; table and feature share the name.

    Weights start uniform in ``±INIT_SCALE / sqrt(dim)``, whatever the number of rows: the default of TorchRec,
    ``±1 / sqrt(rows)``, falls below the normal range of fp16 for tables of billions of rows.

    Args:
        rows: feature name to rows of its table.
        dims: feature name to width of its table; a multiple of 4 (a demand of FBGEMM's kernels).
        data_type: ``DataType.FP32`` or ``DataType.FP16``.
        device: where the weights live; ``"meta"`` for a model that a TorchRec sharder materialises.

    Raises:
        ValueError: ``rows`` and ``dims`` name different features, or a size is out of range.

    Example::

        >>> ebc = build_ebc(rows={"item_id": 100, "brand": 10}, dims={"item_id": 8, "brand": 4})
        >>> [table.embedding_dim for table in ebc.embedding_bag_configs()]
        [8, 4]
    """
    if rows.keys() != dims.keys() or not rows:
        raise ValueError(f"build_ebc: rows and dims must name the same features, got {sorted(rows)} and {sorted(dims)}")
    for name in rows:
        if rows[name] < 1 or dims[name] < 4 or dims[name] % 4:
            raise ValueError(
                f"build_ebc: table {name!r} needs at least 1 row and a width that is a multiple of 4, "
                f"got {rows[name]} rows of width {dims[name]}"
            )
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                feature_names=[name],
                num_embeddings=rows[name],
                embedding_dim=dims[name],
                pooling=PoolingType.MEAN,
                data_type=data_type,
                weight_init_min=-INIT_SCALE / math.sqrt(dims[name]),
                weight_init_max=INIT_SCALE / math.sqrt(dims[name]),
            )
            for name in rows
        ],
        device=torch.device(device),
    )


class SparseNN(nn.Module):
    """Pooled embeddings of all id features, side by side in the order of ``keys``.

    The collections are used as they are, so sharders, planners and quantisers take them like any other; swapping one
    for its sharded or quantised version after construction needs no change here.

    Args:
        ebc: an ``EmbeddingBagCollection``, ``ManagedCollisionEmbeddingBagCollection`` or quantised
            ``EmbeddingBagCollection``; ``None`` if ``managed`` serves all features.
        keys: id features in the order of the output.
        managed: tables of raw ids, if some features have such (`build_managed_ebc`).

    Attributes:
        out_dim: sum of the features' widths.
        raw_keys: the features of ``managed``, whose values are raw 64-bit ids instead of rows.

    Raises:
        ValueError: ``keys`` repeats a feature or names one that no table or more than one serves.

    Example::

        >>> ebc = build_ebc(rows={"item_id": 10, "brand": 5}, dims={"item_id": 8, "brand": 4})
        >>> sparse_nn = SparseNN(ebc, keys=["item_id", "brand"])
        >>> features = KeyedJaggedTensor(
        ...     keys=["item_id", "brand"], values=torch.tensor([1, 2, 0, 3, 4]), lengths=torch.tensor([1, 1, 2, 1])
        ... )
        >>> sparse_nn(features).shape
        torch.Size([2, 12])
    """

    def __init__(
        self,
        ebc: nn.Module | None,
        keys: list[str],
        managed: ManagedCollisionEmbeddingBagCollection | None = None,
    ) -> None:
        super().__init__()
        dims = {} if ebc is None else _feature_dims(ebc)
        raw_dims = {} if managed is None else _feature_dims(managed)
        twice = sorted(dims.keys() & raw_dims.keys())
        if twice:
            raise ValueError(f"SparseNN: ebc and managed both serve {', '.join(twice)}")
        dims |= raw_dims
        unknown = [key for key in keys if key not in dims]
        if unknown or len(set(keys)) != len(keys) or not keys:
            raise ValueError(
                f"SparseNN: keys {keys} must be distinct features of the tables, which serve {sorted(dims)}"
            )
        self.ebc = ebc
        self.managed = managed
        self.keys = list(keys)
        self.raw_keys = frozenset(raw_dims)
        self.out_dim = sum(dims[key] for key in keys)
        # The managed-collision twin also returns the remapped ids. Known here, not asked in forward: TorchRec's
        # pipelines trace forward symbolically, where the type of a result cannot be asked.
        self._returns_ids = isinstance(ebc, ManagedCollisionEmbeddingBagCollection)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Maps the ids of ``B`` items to ``[B, out_dim]``, in the dtype that the collection returns."""
        parts = []
        if self.ebc is not None:
            pooled = self.ebc(features)
            parts.append(pooled[0] if self._returns_ids else pooled)
        if self.managed is not None:
            parts.append(self.managed(features)[0])
        # The column order of a part's values() depends on the sharding plan; regroup puts it in ours.
        columns: Tensor = KeyedTensor.regroup(parts, [self.keys])[0]
        return columns


def _feature_dims(ebc: nn.Module) -> dict[str, int]:
    """Feature name to width, from the first module that describes its tables."""
    for module in ebc.modules():
        configs = getattr(module, "embedding_bag_configs", None)
        if callable(configs):
            return {name: table.embedding_dim for table in configs() for name in table.feature_names}
    raise ValueError(
        f"SparseNN: {type(ebc).__name__} has no embedding_bag_configs(); build the model before sharding it"
    )
