"""Content embeddings of the frozen teacher, one row an item of the catalogue, memory-mapped."""

from __future__ import annotations

import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtmh.artifacts import Artifact, open_artifact
from mtmh.data.arrays import open_array
from mtmh.data.dataset import Dataset
from mtmh.data.row_file import create_array

if TYPE_CHECKING:  # which takes seconds to import, and writing takes none of it
    from torch import Tensor

EMBEDDINGS = Path("embeddings.npy")
OF_EVENTS = Path("ride_along.npy")  # [H, Dc], in the order of the histories

_EVENTS_AT_A_TIME = 1 << 16
_BYTES_AT_A_TIME = 1 << 24
_READERS = 8  # threads, each of which waits for one page at a time


class ContentEmbeddings:
    """Teacher embeddings of all items.

    Attributes:
        artifact: where they come from.
        embeddings: [I, Dc] float16 or float32, rows of unit length; a row of zeros: the item has no content.
    """

    def __init__(self, artifact: Artifact, embeddings: npt.NDArray[Any], of_events: npt.NDArray[Any] | None) -> None:
        self.artifact = artifact
        self.embeddings = embeddings
        self._of_events = of_events
        self._readers: ThreadPoolExecutor | None = None

    def expect_random_reads(self, *, reads_for_host: bool) -> None:
        """Prepares for rows from all over the file, step after step.

        A file that fits half of the memory that is free is read once in order, in the background: a disk or a network
        gives megabytes in order as fast as a few rows. Of a larger one the system is to read what is asked for and
        nothing around it, and `gather` asks on several threads, because each waits for one page at a time.

        Args:
            reads_for_host: whether this process is the one of its host that reads it in order.
        """
        if self.embeddings.nbytes < _free_memory() // 2:
            if reads_for_host:
                path = self.artifact.path / EMBEDDINGS
                threading.Thread(target=_read_through, args=(path,), name="content", daemon=True).start()
            return
        mapped = self.embeddings.base
        assert isinstance(mapped, np.memmap)
        mapped._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
        self._readers = ThreadPoolExecutor(_READERS, "content")

    @property
    def dim(self) -> int:
        """Width ``Dc``."""
        return int(self.embeddings.shape[1])

    def gather(self, indices: npt.NDArray[np.integer[Any]]) -> Tensor:
        """Embeddings of some items.

        Args:
            indices: [U] item indices.

        Returns:
            [U, Dc] float16 or float32, as they are stored: who computes with them widens them where they are computed
            with, for of all that a step takes to a GPU they are the largest part.
        """
        import torch

        if self._readers is None:
            return torch.from_numpy(np.take(self.embeddings, indices, axis=0))
        parts = self._readers.map(
            lambda part: np.take(self.embeddings, part, axis=0), np.array_split(indices, _READERS)
        )
        return torch.from_numpy(np.concatenate(list(parts)))

    def gather_events(self, events: npt.NDArray[np.integer[Any]]) -> Tensor:
        """Embeddings of the items of some events, where they ride along with these, [U, Dc] as `gather` has them."""
        import torch

        assert self._of_events is not None
        return torch.from_numpy(np.take(self._of_events, events, axis=0))


def _free_memory() -> int:
    """Bytes that this host could give, its page cache included."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _read_through(path: Path) -> int:
    """Reads a file once, so that the system keeps it in memory; the number of its bytes."""
    buffer, total = bytearray(_BYTES_AT_A_TIME), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += count
    return total


def open_content(path: Path, dataset: Dataset) -> ContentEmbeddings:
    """Opens the content artifact of a dataset.

    Args:
        path: the artifact; its manifest names the dataset as input ``dataset``.
        dataset: the dataset whose items the rows must be.

    Raises:
        ValueError: no content artifact, wrong dtype or shape, or made of another dataset.
    """
    artifact = open_artifact(path, "content")
    made_of = artifact.manifest.inputs.get("dataset")
    if made_of != dataset.artifact.manifest.digest:
        raise ValueError(
            f"{path}: these content embeddings belong to another dataset (digest {str(made_of)[:12]}) than "
            f"{dataset.artifact.path} (digest {dataset.artifact.manifest.digest[:12]}); run mtmh content embed again"
        )
    embeddings = open_array(path / EMBEDDINGS, (np.float16, np.float32), (dataset.num_items, None))
    of_events = None
    if dataset.summary.rides_along:
        shape = (dataset.summary.num_train_events, embeddings.shape[1])
        of_events = open_array(path / OF_EVENTS, embeddings.dtype.type, shape)
    return ContentEmbeddings(artifact, embeddings, of_events)


def join_content(folder: Path, dataset: Dataset) -> None:
    """Writes the embeddings of the items of all events beside those of the items, if features ride along."""
    if not dataset.summary.rides_along:
        return
    embeddings = open_array(folder / EMBEDDINGS)
    shape = (dataset.summary.num_train_events, embeddings.shape[1])
    of_events = create_array(folder / OF_EVENTS, embeddings.dtype, shape)
    for start in range(0, len(of_events), _EVENTS_AT_A_TIME):
        some = slice(start, start + _EVENTS_AT_A_TIME)
        of_events[some] = embeddings[dataset.event_items[some]]
    of_events.flush()
