"""One column of the items, in a form in which conditions are quickly met: a value, one of several, or a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtmh.data.arrays import Mask
from mtmh.errors import RequestError, meant

Value = str | int | float
Condition = Value | Sequence[Value] | Mapping[str, float | int | None]

_NEAREST_OF = 2_000  # labels among which the nearest one is looked for, a comparison each


class ItemColumn:
    """The values of N items: text, whole numbers or fractions; one an item, several, or none.

    Args:
        column: [N] of strings, integers or floats, or of lists of these.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._num_items = len(column)
        self._owners: npt.NDArray[np.int64] | None = None  # [V] which item has a value; None: the item of its place
        if _is_list(column.type):
            self._owners = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
        self.is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        self.is_whole = pa.types.is_integer(column.type)
        if self.is_text:
            encoded = pa.concat_arrays(column.cast(pa.string()).chunks or [pa.array([], pa.string())])
            encoded = encoded.dictionary_encode()
            self._labels = encoded.dictionary
            self._codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        else:
            self._numbers = column.cast(pa.int64() if self.is_whole else pa.float64())

    def meets(self, condition: Condition, field: str) -> Mask:
        """[N] which items have a value that meets a condition; none of those without a value.

        Args:
            condition: a value, a list of which one is enough, or ``{"min": ..., "max": ...}``, both included.
            field: of the request, for messages.

        Raises:
            RequestError: values of another type than the column's, or a range of text.
        """
        if isinstance(condition, Mapping):
            hits = self._within(condition, field)
        else:
            hits = self._one_of(self.checked(condition, field))
        if self._owners is None:
            return hits
        found = np.zeros(self._num_items, bool)
        found[self._owners[hits]] = True
        return found

    def checked(self, condition: Value | Sequence[Value], field: str) -> list[Value]:
        """The values of a condition that is no range.

        Raises:
            RequestError: none, or one of another type than the column's.
        """
        values = [condition] if isinstance(condition, (str, int, float)) else list(condition)
        kinds: tuple[type, ...] = (str,) if self.is_text else (int,) if self.is_whole else (int, float)
        for value in values:
            if not isinstance(value, kinds) or not (self.is_text or _is_number(value)):
                expected = "text" if self.is_text else "whole numbers" if self.is_whole else "numbers"
                raise RequestError(f"this column holds {expected}, not {value!r}", field)
        if self.is_whole and any(not -(2**63) <= value < 2**63 for value in values):  # type: ignore[operator]
            raise RequestError("expected numbers of 64 bits", field)
        return values

    def absent(self, values: Sequence[Value]) -> list[Value]:
        """Those of some values, all of the column's type, that no item has; one pass over the column at most."""
        if self.is_text:
            places = pc.index_in(pa.array(values, pa.string()), value_set=self._labels)
            return [value for value, place in zip(values, places.to_pylist(), strict=True) if place is None]
        wanted = pa.array(values, self._numbers.type)
        present = set(pc.unique(self._numbers.filter(pc.is_in(self._numbers, value_set=wanted))).to_pylist())
        return [value for value in values if value not in present]

    def meant(self, value: Value) -> str:
        """``; did you mean ...?`` for a text that no item has, where one is near."""
        if not self.is_text or len(self._labels) > _NEAREST_OF:
            return ""
        return meant(str(value), self._labels.to_pylist())

    def _one_of(self, values: Sequence[Value]) -> Mask:
        if not self.is_text:
            return _mask(pc.is_in(self._numbers, value_set=pa.array(values, self._numbers.type)))
        codes = pc.index_in(pa.array(values, pa.string()), value_set=self._labels).drop_null().to_numpy()
        if len(codes) == 1:
            return np.asarray(self._codes == codes[0])
        return np.isin(self._codes, codes)

    def _within(self, limits: Mapping[str, float | int | None], field: str) -> Mask:
        given = {name: limit for name, limit in limits.items() if limit is not None}
        for name, limit in given.items():
            if name not in ("min", "max"):
                raise RequestError(f"a range has min and max, not {name!r}{meant(name, ('min', 'max'))}", field)
            if not _is_number(limit):
                raise RequestError(f"expected a number as {name}, not {limit!r}", field)
        if not given:
            raise RequestError("expected a range with min, max or both", field)
        if self.is_text:
            raise RequestError("a range of a column of text; expected a value or a list of values", field)
        met = pc.is_valid(self._numbers)
        for name, compare in (("min", pc.greater_equal), ("max", pc.less_equal)):
            if name in given:
                limit = _whole(given[name], name) if self.is_whole else float(given[name])
                met = pc.and_kleene(met, compare(self._numbers, pa.scalar(limit)))
        return _mask(met)


def is_filterable(kind: pa.DataType) -> bool:
    """True if conditions on columns of this type can be met."""
    kind = kind.value_type if _is_list(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_floating)
    return any(test(kind) for test in tests)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _whole(limit: float, name: str) -> int:
    """The whole number that bounds 64-bit integers as a limit does; beside a fraction these would be rounded."""
    if abs(limit) >= 2**63:
        return 2**63 - 1 if limit > 0 else -(2**63)
    return math.ceil(limit) if name == "min" else math.floor(limit)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _mask(hits: pa.ChunkedArray) -> Mask:
    return np.asarray(pc.fill_null(hits, False).to_numpy())
