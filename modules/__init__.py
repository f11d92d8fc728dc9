"""The MTMH model: nn.Modules and losses that any TorchRec stack can import."""

from typing import TYPE_CHECKING

from mtmh.lazy import lazy_names

if TYPE_CHECKING:
    from mtmh.specs import Head, IdTable

    from .combination import Combination
    from .content_encoder import ContentEncoder, ContentInputs, PooledEncoder
    from .dense_nn import DenseNN
    from .heads import HeadMLP
    from .id_tables import HashIdRows, build_managed_ebc
    from .losses import Hits, LossOutput, Similar, TeacherEmbeddings, contrastive_losses
    from .masks import accidental_hits
    from .mtmh import MTMH
    from .preranker import Preranker, UserTower, task_probability
    from .semantic import pseudo_labels
    from .sparse_nn import SparseNN, build_ebc

__all__ = [
    "MTMH",
    "Combination",
    "ContentEncoder",
    "ContentInputs",
    "DenseNN",
    "HashIdRows",
    "Head",
    "HeadMLP",
    "Hits",
    "IdTable",
    "LossOutput",
    "PooledEncoder",
    "Preranker",
    "Similar",
    "SparseNN",
    "TeacherEmbeddings",
    "UserTower",
    "accidental_hits",
    "build_ebc",
    "build_managed_ebc",
    "contrastive_losses",
    "pseudo_labels",
    "task_probability",
]

# A name is imported when it is used: retrieval takes the user tower without TorchRec, which takes seconds to import.
_PLACES = {
    "MTMH": "mtmh.modules.mtmh",
    "Combination": "mtmh.modules.combination",
    "ContentEncoder": "mtmh.modules.content_encoder",
    "ContentInputs": "mtmh.modules.content_encoder",
    "DenseNN": "mtmh.modules.dense_nn",
    "HashIdRows": "mtmh.modules.id_tables",
    "Head": "mtmh.specs",
    "HeadMLP": "mtmh.modules.heads",
    "Hits": "mtmh.modules.losses",
    "IdTable": "mtmh.specs",
    "LossOutput": "mtmh.modules.losses",
    "PooledEncoder": "mtmh.modules.content_encoder",
    "Preranker": "mtmh.modules.preranker",
    "Similar": "mtmh.modules.losses",
    "SparseNN": "mtmh.modules.sparse_nn",
    "TeacherEmbeddings": "mtmh.modules.losses",
    "UserTower": "mtmh.modules.preranker",
    "accidental_hits": "mtmh.modules.masks",
    "build_ebc": "mtmh.modules.sparse_nn",
    "build_managed_ebc": "mtmh.modules.id_tables",
    "contrastive_losses": "mtmh.modules.losses",
    "pseudo_labels": "mtmh.modules.semantic",
    "task_probability": "mtmh.modules.preranker",
}

__getattr__, __dir__ = lazy_names(__name__, _PLACES)
