"""Columns of requests, from what a caller gives to checked arrays: each refuses its first bad value by its index."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.ranges import MOST_SECONDS

LONGEST_PREDICTION = 1e12
"""Largest prediction (tokens); beyond it kernels could not count with it."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]


def first_of(bad: npt.NDArray[np.bool_]) -> int:
    """Index of the first that is marked."""
    return int(np.argmax(bad))


def value_error(name: str, expected: str, values: npt.NDArray[Any], bad: npt.NDArray[np.bool_]) -> InputError:
    """The error that names the first bad value of a column."""
    index = first_of(bad)
    return InputError(f"{name}[{index}]: expected {expected}, got {values[index]}")


def number_column(name: str, values: npt.ArrayLike, length: int | None) -> npt.NDArray[Any]:
    """A column of numbers as an array.

    Raises:
        InputError: not one-dimensional, of another length (None: any), or no numbers.
    """
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except ValueError:
        raise InputError(f"{name}: expected a one-dimensional array of numbers, got a ragged sequence") from None
    if array.ndim != 1:
        raise InputError(f"{name}: expected a one-dimensional array, got shape {array.shape}")
    if length is not None and array.shape[0] != length:
        raise InputError(f"{name}: expected {length} values (one for each arrival), got {array.shape[0]}")
    if array.shape[0] and array.dtype.kind not in "iuf":
        raise InputError(f"{name}: expected numbers, got values of type {array.dtype}")
    return array


def integers(name: str, values: npt.ArrayLike, length: int, low: int, high: int) -> IntArray:
    """A column of whole numbers from `low` to `high`, int32[length].

    Raises:
        InputError: as `number_column`, or another value (names the first).
    """
    array = number_column(name, values, length)
    bad = ~((array >= low) & (array <= high))
    if array.dtype.kind == "f":
        bad |= array != np.floor(array)
    if bad.any():
        raise value_error(name, f"a whole number {low}..{high}", array, bad)
    return array.astype(np.int32)


def arrivals(values: npt.ArrayLike) -> FloatArray:
    """A column of arrival times in order, float64[n] (s), n >= 1.

    Raises:
        InputError: as `number_column`, no times, one out of range, or one before that before it.
    """
    array = number_column("arrival", values, None)
    if array.shape[0] == 0:
        raise InputError("requests: expected at least one request, got none")
    # Adding 0.0 copies and turns -0.0 into 0.0, so that equal times have equal digests.
    arrival: FloatArray = array.astype(np.float64) + 0.0
    bad = ~((arrival >= 0.0) & (arrival <= MOST_SECONDS))
    if bad.any():
        raise value_error("arrival", f"seconds >= 0 and <= {MOST_SECONDS:g}", arrival, bad)
    unsorted = arrival[1:] < arrival[:-1]
    if unsorted.any():
        index = first_of(unsorted) + 1
        before, at = float(arrival[index - 1]), float(arrival[index])
        raise InputError(f"arrival[{index}]: expected times in order, got {at!r} s after {before!r} s")
    return arrival


def predictions(values: npt.ArrayLike | None, length: int) -> FloatArray:
    """A column of predicted lengths, float64[length] (tokens); nan where there is none.

    Raises:
        InputError: as `number_column`, or a value that is no number of tokens.
    """
    if values is None:
        return np.full(length, np.nan)
    prediction: FloatArray = number_column("prediction", values, length).astype(np.float64)
    missing = np.isnan(prediction)
    bad = ~(missing | ((prediction > 0.0) & (prediction <= LONGEST_PREDICTION)))
    if bad.any():
        raise value_error("prediction", f"tokens > 0 and <= {LONGEST_PREDICTION:g}, or nan", prediction, bad)
    # One bit pattern for "no prediction", whatever sign or payload the caller's nan had.
    prediction[missing] = np.nan
    return prediction
