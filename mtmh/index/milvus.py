"""The index of one head as a collection of Milvus, for a catalogue that outgrows one machine.

The same interface as the faiss index. A server spreads a collection over machines; Milvus Lite, a file, is the same
in one process, for tests.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from mtmh.config import MilvusConfig
from mtmh.data.arrays import Items, Mask, Vectors
from mtmh.index.artifact import milvus_file
from mtmh.index.vector_index import check_search

logger = logging.getLogger(__name__)

TOKEN = "MILVUS_TOKEN"  # environment variable

_MAX_ANSWERS = 16_384  # Milvus's own limit
_MAX_FILTER_ITEMS = 1_000_000
_INSERT_ROWS = 4096


class MilvusCollection(BaseModel):
    """Facts of a head's collection, as an index artifact records them.

    Attributes:
        uri: of the server, or the file of Milvus Lite.
        collection: its name.
        dim: D.
        num_clusters: of its IVF index.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    collection: str
    dim: int
    num_clusters: int

    @staticmethod
    def named(config: MilvusConfig, head: str, dim: int, num_clusters: int) -> MilvusCollection:
        """One of a name that no other index has."""
        name = f"{_prefix(config, head)}{uuid.uuid4().hex[:12]}"
        return MilvusCollection(uri=config.uri, collection=name, dim=dim, num_clusters=num_clusters)

    @staticmethod
    def read(path: Path) -> MilvusCollection:
        """Reads the file that ``write`` wrote.

        Raises:
            ValueError: missing or not readable.
        """
        if not path.is_file():
            raise ValueError(f"{path}: no index file here")
        try:
            return MilvusCollection.model_validate_json(path.read_text())
        except ValidationError as error:
            raise ValueError(f"{path}: not a description of a collection: {error.errors()[0]['msg']}") from None

    @classmethod
    def trusted(cls, path: Path, config: MilvusConfig | None) -> MilvusCollection:
        """Reads the file, and takes it at its word only where the recipe says the same.

        Who wrote the folder does not choose the server that the operator's token is sent to, nor the collection.

        Args:
            path: ``milvus_file`` of a head, in the folder of an index.
            config: ``index.milvus`` of the recipe that asks.

        Raises:
            ValueError: missing, not readable, of another server, or of a name that no index of this recipe has.
        """
        place = cls.read(path)
        if config is None or place.uri != config.uri:
            says = "nothing" if config is None else config.uri
            raise ValueError(
                f"{path}: the index is on Milvus at {place.uri}, but index.milvus.uri of the recipe is {says}; nothing"
                " was sent there. If it is the right server, say so in the recipe"
            )
        head = path.name.removesuffix(milvus_file("").name)
        if not re.fullmatch(re.escape(_prefix(config, head)) + "[0-9a-f]{12}", place.collection):
            raise ValueError(
                f"{path}: collection {place.collection}, but those of this head begin with {_prefix(config, head)}"
                " (index.milvus.collection), followed by twelve hexadecimal digits"
            )
        return place

    def write(self, path: Path) -> None:
        """Writes these facts to a file."""
        path.write_text(self.model_dump_json(indent=2))

    def drop(self) -> None:
        """Deletes the collection, if it is there; without loading it first, as a ``MilvusIndex`` would.

        Raises:
            ValueError: pymilvus is not installed, no Milvus answers, or it refuses.
        """
        client = _connect(self.uri)
        try:
            if client.has_collection(self.collection):
                client.drop_collection(self.collection)
        except importlib.import_module("pymilvus").MilvusException as error:
            raise ValueError(f"{self.uri}: {self.collection}: {error.message}") from None

    @property
    def is_file(self) -> bool:
        """True for Milvus Lite, which one process opens at a time."""
        return self.uri.endswith(".db") and "://" not in self.uri


class MilvusIndex:
    """One head's collection; items are its primary keys.

    Args:
        place: which collection; ``create`` makes it.

    Raises:
        ValueError: pymilvus is not installed, no Milvus answers, or there is no such collection.
    """

    def __init__(self, place: MilvusCollection) -> None:
        self._place = place
        self._client = _connect(place.uri)
        if not self._client.has_collection(place.collection):
            raise ValueError(f"{place.uri}: no collection {place.collection}; build the index again")
        self._client.load_collection(place.collection)
        self._num_items = self._count()

    @classmethod
    def create(cls, place: MilvusCollection) -> MilvusIndex:
        """Makes an empty collection with an IVF index."""
        client = _connect(place.uri)
        kinds = importlib.import_module("pymilvus").DataType
        schema = client.create_schema(auto_id=False)
        schema.add_field("item", kinds.INT64, is_primary=True)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=place.dim)
        parameters = client.prepare_index_params()
        # Nested as servers have always taken it: Milvus Lite 3.2 does not see the flat form and takes 128 clusters.
        clusters = {"params": {"nlist": place.num_clusters}}
        parameters.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params=clusters)
        client.create_collection(place.collection, schema=schema, index_params=parameters, consistency_level="Strong")
        return cls(place)

    @property
    def num_items(self) -> int:
        """Vectors in the collection, as of the last change that this object made."""
        return self._num_items

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self._place.dim

    @property
    def num_clusters(self) -> int:
        """Clusters asked for; Milvus cuts a large collection into segments that have as many each."""
        return self._place.num_clusters

    def search(self, queries: Vectors, k: int, num_probes: int, allowed: Mask | None = None) -> tuple[Vectors, Items]:
        """As ``VectorIndex.search``.

        Raises:
            ValueError: an argument out of range, more answers than Milvus gives, or a filter that names more items than
                a request can carry.
        """
        check_search(queries, k, num_probes, self.dim)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        items = np.full((len(queries), k), -1, np.int64)
        limit = min(k, self._num_items)
        if limit > _MAX_ANSWERS:
            raise ValueError(f"k is {k}: Milvus gives at most {_MAX_ANSWERS} answers a query")
        if limit == 0 or len(queries) == 0 or (allowed is not None and not allowed.any()):
            return scores, items
        answers = self._client.search(
            self._place.collection,
            data=list(np.ascontiguousarray(queries, dtype=np.float32)),
            limit=limit,
            filter="" if allowed is None else filter_expression(allowed),
            output_fields=["item"],
            search_params={"metric_type": "IP", "params": {"nprobe": min(num_probes, self.num_clusters)}},
        )
        for row, hits in enumerate(answers):
            scores[row, : len(hits)] = [hit["distance"] for hit in hits]
            items[row, : len(hits)] = [hit["item"] for hit in hits]
        return scores, items

    def add(self, vectors: Vectors, items: Items) -> None:
        """Adds items, or replaces those that are there.

        Args:
            vectors: [N, D] float32, unit length.
            items: [N] int64, not negative.

        Raises:
            ValueError: shapes that do not fit, or a negative item.
        """
        if vectors.shape != (len(items), self.dim):
            raise ValueError(f"vectors of shape {vectors.shape}, expected [{len(items)}, {self.dim}]")
        if len(items) and items.min() < 0:
            raise ValueError(f"item {items.min()}: item indices are not negative")
        for start in range(0, len(items), _INSERT_ROWS):
            part = slice(start, start + _INSERT_ROWS)
            rows = zip(items[part].tolist(), np.asarray(vectors[part], np.float32), strict=True)
            self._client.upsert(self._place.collection, [{"item": item, "vector": row} for item, row in rows])
        self._num_items = self._count()

    def remove(self, items: Items) -> None:
        """Removes items; those that are not there are passed over."""
        for start in range(0, len(items), _INSERT_ROWS):
            self._client.delete(self._place.collection, ids=items[start : start + _INSERT_ROWS].tolist())
        self._num_items = self._count()

    def seal(self) -> None:
        """Lets Milvus store and index what was added."""
        self._client.flush(self._place.collection)
        self._num_items = self._count()

    def _count(self) -> int:
        rows = self._client.query(self._place.collection, filter="item >= 0", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])


def drop_collections(folder: Path, config: MilvusConfig | None) -> None:
    """Deletes the collections of an index folder, as far as they are there; before the folder is deleted.

    A Milvus that does not answer is a warning, as is a collection that is not this recipe's, or that a folder beside
    this one names too: the folder's end must not depend on it.
    """
    for path in sorted(folder.glob(str(milvus_file("*")))):
        try:
            place = MilvusCollection.trusted(path, config)
            for other in folder.parent.glob(f"*/{milvus_file('*')}"):
                if other.parent != folder and place.collection in other.read_text():
                    raise ValueError(f"{other} names {place.collection} too")
            place.drop()
        except ValueError as error:
            logger.warning("%s: its collection was not deleted: %s", path, error)


def filter_expression(allowed: npt.NDArray[np.bool_]) -> str:
    """A mask [I] as a Milvus filter, by the shorter of the two lists.

    Raises:
        ValueError: both are longer than a request can carry.
    """
    yes, no = np.flatnonzero(allowed), np.flatnonzero(~allowed)
    if min(len(yes), len(no)) > _MAX_FILTER_ITEMS:
        raise ValueError(
            f"a filter that allows {len(yes)} items and refuses {len(no)}: Milvus is sent the shorter list, at most"
            f" {_MAX_FILTER_ITEMS} items"
        )
    if len(yes) <= len(no):
        return f"item in {yes.tolist()}"
    within = f"item < {len(allowed)}"
    return f"{within} and item not in {no.tolist()}" if len(no) else within


def _prefix(config: MilvusConfig, head: str) -> str:
    safe = re.sub(r"\W", "_", head, flags=re.ASCII)
    return f"{config.collection}_{safe}_"


def _connect(uri: str) -> Any:
    try:
        milvus = importlib.import_module("pymilvus")
    except ImportError:
        raise ValueError("index.backend is milvus, which needs pymilvus: pip install 'mtmh[milvus]'") from None
    if "://" not in uri:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    try:
        return milvus.MilvusClient(uri, token=os.environ.get(TOKEN, ""))
    except milvus.MilvusException as error:
        raise ValueError(f"index.milvus.uri is {uri}: {error.message}") from None
