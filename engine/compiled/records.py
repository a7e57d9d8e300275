"""Named records in memory: `cells` are float64, so that all kernels have one type, and are viewed as a record.

A record is a numpy dtype of fields of 8 bytes ("f8" or "i8"), of arrays of such and of other records:

    CLOCK = np.dtype([("mean_s", "f8"), ("batches", "i8")])
    clock = record(CLOCK)
    ...
    c = clock(memory.row)
    c.mean_s += ...

The accessors work in kernels, at the cost of a pointer, and in plain Python. What is written goes into the cells. Whole
numbers should be 0 or more: seen as float64, in a comparison or a checkpoint, a negative one is nan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import from_dtype, types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import make_intrinsic_template
from numba.np.arrayobj import make_array, populate_array

from engine.errors import InputError

if TYPE_CHECKING:
    from llvmlite.ir import IRBuilder
    from numba.core.cpu import CPUContext

_CELL = np.dtype("f8").itemsize
_TOO_FEW = "a record needs more cells than the memory has (row_memory, request_memory: see cells_of)"


def cells_of(record_type: np.dtype) -> int:
    """float64 cells that a record takes: what a policy declares as its `row_memory` or `request_memory`."""
    return record_type.itemsize // _CELL


def params_of(policy: Any) -> np.dtype:
    """The record of a policy's parameters as `Policy.params` lays them out: one "f8" for each field of the class."""
    return np.dtype([(field.name, "f8") for field in fields(policy)], align=True)


def record(record_type: np.dtype) -> Any:
    """What views the first cells of a row of them as one record.

    Args:
        record_type: fields of 8 bytes each, arrays of such, or records.

    Returns:
        ``f(cells: float64[k]) -> record``, for kernels and for Python; k >= `cells_of` the record.

    Raises:
        InputError: a field that is no "f8" or "i8", or one with a name that numpy's records have taken.
    """
    _check(record_type)
    return _Accessor(_intrinsic(record_type, _point), lambda cells: _records(cells[None], record_type)[0])


def records(record_type: np.dtype) -> Any:
    """What views the first cells of every line as a record.

    Args:
        record_type: as for `record`.

    Returns:
        ``f(cells: float64[n, k]) -> record[n]``, for kernels and for Python; k >= `cells_of` the record. Where a field
        is a record itself, the field of the result is an array of those.

    Raises:
        InputError: as `record`.
    """
    _check(record_type)
    return _Accessor(_intrinsic(record_type, _line_up), lambda cells: _records(cells, record_type))


def series(record_type: np.dtype, behind: np.dtype | None = None) -> Any:
    """What views the cells of a row as records of one type, one after another, as many as there is room for.

    Args:
        record_type: as for `record`.
        behind: the record of another type with which the row begins, if there is one.

    Returns:
        ``f(cells: float64[k]) -> record[n]``, for kernels and for Python.

    Raises:
        InputError: as `record`.
    """
    _check(record_type)
    first = cells_of(behind) if behind is not None else 0

    def line_up(context: CPUContext, builder: IRBuilder, kind: Any, source: Any) -> Any:
        (cells,) = cgutils.unpack_tuple(builder, source.shape)
        number = builder.sdiv(builder.sub(cells, cells.type(first)), cells.type(cells_of(record_type)))
        data, stride = builder.gep(source.data, [cells.type(first)]), cells.type(kind.dtype.size)
        return _lines(context, builder, kind, source, data, (number, stride))

    def interpreted(cells: np.ndarray) -> np.ndarray:
        if len(cells) < first:
            raise ValueError(_TOO_FEW)
        width = cells_of(record_type)
        number = (len(cells) - first) // width
        return _records(cells[first : first + number * width].reshape(number, width), record_type)

    return _Accessor(_intrinsic(record_type, line_up, first), interpreted)


class _Accessor:
    """One function with two bodies: numba sees an intrinsic, Python calls another."""

    def __init__(self, compiled: Callable[..., Any], interpreted: Callable[[np.ndarray], Any]) -> None:
        template: Any = make_intrinsic_template(self, compiled, "record", kwargs={})
        self._numba_type_ = types.Function(template)
        self._interpreted = interpreted

    def __call__(self, cells: np.ndarray) -> Any:
        return self._interpreted(cells)


def _check(record_type: np.dtype) -> None:
    for name, (kind, *_) in (record_type.fields or {"": (record_type, 0)}).items():
        if kind.base.fields:
            _check(kind.base)
        elif kind.base not in (np.dtype("f8"), np.dtype("i8")):
            raise InputError(f"record: field {name!r}: expected f8, i8, arrays or records of these, got {kind}")
        if hasattr(np.record, name) or hasattr(np.recarray, name):
            raise InputError(f"record: expected names that numpy's records leave free, got the field {name!r}")


def _records(cells: np.ndarray, record_type: np.dtype) -> np.ndarray:
    if cells.shape[1] < cells_of(record_type):
        raise ValueError(_TOO_FEW)
    return cells[:, : cells_of(record_type)].view(record_type)[:, 0].view(np.recarray)


def _intrinsic(record_type: np.dtype, build: Callable[..., Any], least: int | None = None) -> Callable[..., Any]:
    """The compiled accessor: checks the number of cells, then lets `build` point at them."""
    kind: Any = from_dtype(record_type)
    returned = kind if build is _point else types.Array(kind, 1, "A", aligned=True)
    least = cells_of(record_type) if least is None else least

    def view_cells(typing_context: object, cells: Any) -> Any:
        def code(context: CPUContext, builder: IRBuilder, signature: Any, arguments: Any) -> Any:
            source = make_array(signature.args[0])(context, builder, arguments[0])
            width = cgutils.unpack_tuple(builder, source.shape)[-1]
            with builder.if_then(builder.icmp_signed("<", width, width.type(least)), likely=False):
                context.call_conv.return_user_exc(builder, ValueError, (_TOO_FEW,))
            return build(context, builder, signature.return_type, source)

        return returned(cells), code

    return view_cells


def _point(context: CPUContext, builder: IRBuilder, kind: Any, source: Any) -> Any:
    """A pointer to the first cells, as the record."""
    return builder.bitcast(source.data, context.get_value_type(kind))


def _line_up(context: CPUContext, builder: IRBuilder, kind: Any, source: Any) -> Any:
    """An array with the record of each line."""
    (number, _), (stride, _) = (cgutils.unpack_tuple(builder, x) for x in (source.shape, source.strides))
    return _lines(context, builder, kind, source, source.data, (number, stride))


def _lines(context: CPUContext, builder: IRBuilder, kind: Any, source: Any, data: Any, layout: tuple[Any, Any]) -> Any:
    """An array of records in the cells of another one: how many, and bytes from one to the next."""
    found = make_array(kind)(context, builder)
    populate_array(
        found,
        data=builder.bitcast(data, found.data.type),
        shape=layout[:1],
        strides=layout[1:],
        itemsize=context.get_constant(types.intp, kind.dtype.size),
        meminfo=source.meminfo,
        parent=source.parent,
    )
    return impl_ret_borrowed(context, builder, kind, found._getvalue())
