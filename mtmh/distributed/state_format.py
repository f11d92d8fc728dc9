"""The format of sharded state on disk: tensors as plain bytes, and an index in JSON that says where each piece lies.

PyTorch's own format pickles the index and every piece; reading pickles runs what a forged one asks for. Its safetensors
variant keys pieces by name alone, so that two pieces of one table on one rank overwrite each other.
"""

from __future__ import annotations

import os
import re
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from mtmh.artifacts import write_atomically

INDEX = "index.json"

_FILE = re.compile(r"__\d+_0\.distcp")
_PICKLED_INDEX = ".metadata"  # of PyTorch's format
_ALIGNMENT = 64  # bytes; a piece is used where it lies in the file
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    )
}  # fmt: skip


_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Piece(_Strict):
    offsets: list[_Count]  # of its first element in the tensor
    sizes: list[_Count]
    file: str
    start: _Count  # bytes


class _Tensor(_Strict):
    dtype: str
    size: list[_Count]
    pieces: list[_Piece]


class _Index(_Strict):
    format_version: Literal[1] = 1
    tensors: dict[str, _Tensor]


class StateWriter(FileSystemWriter):
    """Writes one file a rank, and with the first rank the index."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes the pieces of this rank, one after the other; none is copied on the CPU."""
        name = f"{plan.storage_data.prefix}0.distcp"
        results = []
        with Path(self.path, name).open("wb") as file:
            for item in plan.items:
                piece = planner.resolve_data(item)
                assert isinstance(piece, Tensor), f"{item.index.fqn}: only tensors are state"
                file.write(bytes(-file.tell() % _ALIGNMENT))
                start = file.tell()
                file.write(piece.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
                results.append(WriteResult(item.index, piece.nbytes, _StorageInfo(name, start, piece.nbytes)))
            file.flush()
            os.fsync(file.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the index of the pieces of all ranks."""
        stored = {result.index: result.storage_data for part in results for result in part}
        tensors = {}
        for name, entry in metadata.state_dict_metadata.items():
            assert isinstance(entry, TensorStorageMetadata), f"{name}: only tensors are state"
            pieces = []
            for chunk in entry.chunks:
                lies = stored[MetadataIndex(name, chunk.offsets)]
                pieces.append(
                    _Piece(
                        offsets=list(chunk.offsets), sizes=list(chunk.sizes), file=lies.relative_path, start=lies.offset
                    )
                )
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            assert dtype in _DTYPES, f"{name}: {dtype} is no type that the index knows"
            tensors[name] = _Tensor(dtype=dtype, size=list(entry.size), pieces=pieces)
        write_atomically(Path(self.path, INDEX), _Index(tensors=tensors).model_dump_json())


class StateReader(FileSystemReader):
    """Reads what `StateWriter` wrote; a forged folder gives an error or wrong numbers, and runs nothing."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002
        """The index: names, types, shapes and where the pieces are.

        Raises:
            ValueError: it is missing, is not what `StateWriter` writes, or points outside of the folder's files.
        """
        path = Path(self.path, INDEX)
        try:
            index = _Index.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            if path.with_name(_PICKLED_INDEX).exists():
                raise ValueError(
                    f"{path.with_name(_PICKLED_INDEX)}: a pickled index; pickles can run code and are not read. "
                    f"An mtmh before 0.1.0 or another program wrote this state: train again"
                ) from None
            raise ValueError(f"{path}: no index of the state here") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise ValueError(f"{path}: not an index of a state: {field}: {first['msg']}") from None
        sizes: dict[str, int] = {}
        entries, places = {}, {}
        for name, tensor in index.tensors.items():
            try:
                dtype = _DTYPES[tensor.dtype]
            except KeyError:
                raise ValueError(
                    f"{path}: {name}: no tensor type {tensor.dtype!r}; it may be {', '.join(_DTYPES)}"
                ) from None
            for piece in tensor.pieces:
                place = _checked(path, name, tensor, piece, dtype, sizes)
                places[MetadataIndex(name, piece.offsets)] = place
            covered = sum(prod(piece.sizes) for piece in tensor.pieces)
            distinct = {tuple(piece.offsets) for piece in tensor.pieces if prod(piece.sizes)}
            if covered != prod(tensor.size) or len(distinct) != sum(1 for piece in tensor.pieces if prod(piece.sizes)):
                raise ValueError(
                    f"{path}: {name}: its pieces do not make up the tensor of shape {tuple(tensor.size)} exactly"
                )
            entries[name] = TensorStorageMetadata(
                TensorProperties(dtype=dtype),
                torch.Size(tensor.size),
                [ChunkStorageMetadata(torch.Size(piece.offsets), torch.Size(piece.sizes)) for piece in tensor.pieces],
            )
        return Metadata(dict(entries), storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))

    def set_up_storage_reader(self, metadata: Metadata, *args: Any, **kwargs: Any) -> None:
        """Takes the index, which also tells the types and shapes of the pieces."""
        super().set_up_storage_reader(metadata, *args, **kwargs)
        self._entries = metadata.state_dict_metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copies what is wanted of each piece; pages of a file that hold nothing wanted are not read."""
        for item in plan.items:
            entry = self._entries[item.storage_index.fqn]
            assert isinstance(entry, TensorStorageMetadata)
            sizes = next(chunk.sizes for chunk in entry.chunks if chunk.offsets == item.storage_index.offset)
            target = planner.resolve_tensor(item).detach()
            piece = self._mapped(self.storage_data[item.storage_index], entry.properties.dtype, sizes)
            target.copy_(narrow_tensor_by_index(piece, item.storage_offsets, item.lengths))
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def pieces(self, name: str) -> tuple[TensorStorageMetadata, list[tuple[tuple[int, ...], Tensor]]]:
        """Type and shape of one tensor, and its pieces as they lie in the files, with the offsets of each.

        Pieces are memory-mapped: what is not touched is not read.
        """
        metadata = self.read_metadata()
        entry = metadata.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata), f"{name} is no tensor"
        places, dtype = metadata.storage_data, entry.properties.dtype
        return entry, [
            (tuple(chunk.offsets), self._mapped(places[MetadataIndex(name, chunk.offsets)], dtype, chunk.sizes))
            for chunk in entry.chunks
        ]

    def _mapped(self, place: _StorageInfo, dtype: torch.dtype, sizes: torch.Size) -> Tensor:
        if not place.length:
            return torch.empty(sizes, dtype=dtype)
        # Private to this process: the files stay as they are.
        mapped = np.memmap(Path(self.path, place.relative_path), np.uint8, "c", place.offset, place.length)
        return torch.from_numpy(mapped).view(dtype).reshape(sizes)


def _checked(
    path: Path, name: str, tensor: _Tensor, piece: _Piece, dtype: torch.dtype, sizes: dict[str, int]
) -> _StorageInfo:
    """Place of a piece, if it lies in the tensor and a file of the folder; ``sizes`` keeps those of files seen."""
    ends = [offset + size for offset, size in zip(piece.offsets, piece.sizes, strict=False)]
    ranks = {len(tensor.size), len(piece.offsets), len(piece.sizes)}
    if len(ranks) > 1 or any(end > size for end, size in zip(ends, tensor.size, strict=True)):
        raise ValueError(
            f"{path}: {name}: a piece of shape {tuple(piece.sizes)} at {tuple(piece.offsets)} is not within the "
            f"tensor of shape {tuple(tensor.size)}"
        )
    if _FILE.fullmatch(piece.file) is None:
        raise ValueError(f"{path}: {name}: {piece.file!r} is not the name of a file of a rank; refusing to read it")
    file = path.with_name(piece.file)
    if piece.file not in sizes:
        if file.is_symlink() or not file.is_file():
            raise ValueError(f"{file}: missing or not a plain file, although {INDEX} names it")
        sizes[piece.file] = file.stat().st_size
    length = prod(piece.sizes) * dtype.itemsize
    if piece.start % _ALIGNMENT or piece.start + length > sizes[piece.file]:
        raise ValueError(
            f"{file}: {name}: {length} bytes from {piece.start} on are not within its {sizes[piece.file]} bytes"
        )
    return _StorageInfo(piece.file, piece.start, length)
