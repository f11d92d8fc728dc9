"""The contrastive losses: one interface, a pass in chunks for every device and a Triton pass for GPUs."""

from .chunked import CPU_CHUNK_ELEMENTS
from .dispatcher import LossOutput, Products, contrastive_losses
from .problem import Hits, Similar, TeacherEmbeddings

__all__ = [
    "CPU_CHUNK_ELEMENTS",
    "Hits",
    "LossOutput",
    "Products",
    "Similar",
    "TeacherEmbeddings",
    "contrastive_losses",
]
