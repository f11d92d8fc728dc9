"""The interface between prepare and the adapter of a source.

An adapter turns files into two queries, one for the events and one for the items, in the columns of the data
contract. It drops no row by itself: a row it does not want carries a ``drop_reason``, and prepare counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mtmh.config import DataConfig
from mtmh.config.messages import describe_problems
from mtmh.places import AnyPath
from mtmh.prepare.table_file import TableFile

OptionsT = TypeVar("OptionsT", bound=BaseModel)


@dataclass(frozen=True)
class SourceTables:
    """Two queries over a source's files.

    Attributes:
        events: SELECT of ``user_id``, ``item_id`` (BIGINT or VARCHAR), ``timestamp`` BIGINT and ``drop_reason``
            VARCHAR (NULL: keep), and the columns named in ``event_columns``.
        items: SELECT of ``item_id``, ``text``, ``image``, ``topic_l1``, ``topic_l2`` VARCHAR, ``content_embedding``
            FLOAT[], ``drop_reason`` and one column a feature; ``None``: the catalogue is what the events name.
        id_features: names of the id features that ``items`` offers; a column is single-valued or a list.
        float_features: names of the float features that ``items`` offers.
        items_from_events: whether ``items`` is drawn from the events, so that later events can add items.
        has_clock: whether timestamps of different users can be compared.
        tables: the files behind the queries.
        events_by_file: that of ``tables`` whose rows are the events, one by one; ``None``: it is not so simple.
        items_by_file: likewise of the items.
        timestamp_is_date: whether ``timestamp`` came from dates, as seconds since 1970.
        event_columns: which of ``event`` VARCHAR (its kind) and ``value`` FLOAT the ``events`` offer; NULL: none.
        has_fractions: whether ``events`` offer ``fraction`` DOUBLE, what ``timestamp`` leaves of a finer clock: from 0
            to below 1 of its unit. It orders events and cuts them, and is not kept.
        lake_tables: ``events`` and ``items`` that come from a lake, at the version that was read.
        topic_separator: what stands between the coarse topics in ``topic_l2``, where an item may have several; None:
            it has one at most.
    """

    events: str
    items: str | None
    id_features: tuple[str, ...] = ()
    float_features: tuple[str, ...] = ()
    items_from_events: bool = False
    has_clock: bool = True
    tables: tuple[TableFile, ...] = ()
    events_by_file: TableFile | None = None
    items_by_file: TableFile | None = None
    timestamp_is_date: bool = False
    event_columns: tuple[str, ...] = ()
    has_fractions: bool = False
    lake_tables: Mapping[str, str] = field(default_factory=dict)
    topic_separator: str | None = None

    @property
    def files(self) -> tuple[AnyPath, ...]:
        """The files, for messages."""
        return tuple(file for table in self.tables for file in table.files)


@dataclass(frozen=True)
class SourceContext:
    """The means that an adapter may use.

    Attributes:
        data: the settings; ``data.options`` are the adapter's own.
        seed: of all that an adapter draws.
        connection: DuckDB, to look at files and to hold tables of the adapter's own.
        scratch: a folder that is gone when prepare ends.
        note: takes a line about what goes on.
    """

    data: DataConfig
    seed: int
    connection: Any
    scratch: Path
    note: Callable[[str], None]

    def options(self, model: type[OptionsT]) -> OptionsT:
        """Checks ``data.options`` against the adapter's settings class.

        Raises:
            ValueError: an unknown option or a value that does not fit; the message names it.
        """
        try:
            return model.model_validate(self.data.options)
        except ValidationError as error:
            raise ValueError(describe_problems(error, model, "data.options")) from None

    def file(self, *names: str) -> AnyPath:
        """The first of ``names`` that lies in ``data.input``.

        Raises:
            ValueError: ``data.input`` is not set or no folder, or holds none of them.
        """
        folder = self.data.input
        if folder is None:
            raise ValueError(f"data.input: not set; expected the folder with {names[0]}")
        try:
            if not folder.is_dir():
                raise ValueError(f"data.input: {folder} is no folder; expected the folder with {names[0]}")
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        except OSError as error:
            raise ValueError(f"data.input: {folder} cannot be reached: {error}") from None
        raise ValueError(f"{folder}: no file {' or '.join(names)} here")
