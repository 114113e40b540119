"""The caller's numbers as arrays the plan owns: int32 or bool, contiguous, read-only.

Accepted are numpy arrays, lists, tuples and ranges. Nothing is rounded, wrapped or reinterpreted: a
float, a bool among integers or a value outside int32 is refused with the name of the argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gdn_dispatch.errors import InvalidPlanError

__all__ = ["BoolArray", "Int32Array", "bool_array", "frozen", "int32_array", "int_value"]

Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

_INT32 = np.iinfo(np.int32)


def int32_array(name: str, value: object, *, ndims: tuple[int, ...] = (1,)) -> Int32Array:
    """Copy ``value`` into a read-only int32 array of one of ``ndims`` dimensions."""
    expected = f"a {_dimensions(ndims)} int32 array"
    array = _as_array(name, value, expected)
    if array.ndim not in ndims:
        raise InvalidPlanError(name, f"shape {list(array.shape)}", expected)
    if array.dtype != np.int32:
        if array.size == 0 and not isinstance(value, np.ndarray):
            array = array.astype(np.int32)  # numpy reads an empty list as float64
        if array.dtype.kind not in "iu":
            raise InvalidPlanError(name, f"dtype {array.dtype}", expected)
        if array.size and not np.can_cast(array.dtype, np.int32):
            lowest, highest = int(array.min()), int(array.max())
            if lowest < _INT32.min or highest > _INT32.max:
                outlier = lowest if lowest < _INT32.min else highest
                raise InvalidPlanError(name, f"the value {outlier}", "values that fit int32")
    return frozen(np.array(array, dtype=np.int32, order="C"))


def bool_array(name: str, value: object) -> BoolArray:
    """Copy ``value`` into a read-only, one-dimensional bool array."""
    expected = "a 1-D bool array"
    array = _as_array(name, value, expected, bools=True)
    if array.ndim != 1:
        raise InvalidPlanError(name, f"shape {list(array.shape)}", expected)
    if array.dtype != np.bool_ and (array.size or isinstance(value, np.ndarray)):
        raise InvalidPlanError(name, f"dtype {array.dtype}", expected, hint="compare with 0 first")
    return frozen(np.array(array, dtype=np.bool_, order="C"))


def int_value(name: str, value: object) -> int:
    """One Python or numpy integer that fits int32; a bool is not one."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise InvalidPlanError(name, f"{value!r} ({type(value).__name__})", "an int")
    number = int(value)
    if not _INT32.min <= number <= _INT32.max:
        raise InvalidPlanError(name, f"the value {number}", "a value that fits int32")
    return number


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Make ``array``, which must own its data, read-only."""
    array.setflags(write=False)
    return array


def _as_array(name: str, value: object, expected: str, *, bools: bool = False) -> npt.NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, (list, tuple, range)):
        raise InvalidPlanError(
            name,
            type(value).__name__,
            f"{expected}, list, tuple or range",
            hint="plans are made of host data; device tensors go to build_chunk_meta",
        )
    if not bools and _contains_bool(value):
        raise InvalidPlanError(name, "a bool among the values", expected)
    try:
        return np.asarray(value)
    except ValueError:
        raise InvalidPlanError(name, "rows of different lengths", expected) from None


def _contains_bool(value: list[Any] | tuple[Any, ...] | range) -> bool:
    # numpy would turn [1, True] into [1, 1] without a word.
    if isinstance(value, range):
        return False
    kinds = set(map(type, value))
    if bool in kinds or np.bool_ in kinds:
        return True
    nested = list in kinds or tuple in kinds
    return nested and any(_contains_bool(row) for row in value if isinstance(row, (list, tuple)))


def _dimensions(ndims: tuple[int, ...]) -> str:
    return " or ".join(f"{n}-D" for n in ndims)
