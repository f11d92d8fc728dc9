"""The MTMH model: nn.Modules and losses that any TorchRec stack can import."""

from mtmh.specs import Head, IdTable

from .combination import Combination
from .content_encoder import ContentEncoder, ContentInputs, PooledEncoder
from .dense_nn import DenseNN
from .heads import HeadMLP
from .id_tables import HashIdRows, build_managed_ebc
from .losses import LossOutput, Similar, TeacherEmbeddings, contrastive_losses
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
