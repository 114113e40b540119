"""The compiled core: where it is, what it offers here, and its structs.

``csrc/gdn_cpu.h`` is the other side of this module. Every member of its structs is eight bytes, so
a call is one ``struct.pack`` of integers; the sizes are compared when the library is loaded.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, NoReturn

import torch  # before the library is loaded: it brings the OpenMP runtime that both use

import gdn_dispatch_cpu

__all__ = [
    "ABSENT",
    "ABSENT_STATES",
    "DTYPES",
    "LAYER_CALL",
    "PATHS",
    "RULE_CALL",
    "TABLES_CALL",
    "Fault",
    "Library",
    "find_library",
    "load_library",
]

_FILE: Final = "libgdn_cpu.so"

DTYPES: Final = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""``gdn_dtype``; 0 means that there is no such tensor."""

PATHS: Final = {"portable": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4}
"""``gdn_path``; 0 means the best there is."""

ABSENT: Final = (0,) * 7
"""A ``gdn_tensor`` that is not there."""

ABSENT_STATES: Final = (0,) * 7
"""``gdn_states`` that are not there."""

_PROBLEM: Final = "11qd" + 8 * "7q"
RULE_CALL: Final = struct.Struct(f"={_PROBLEM}3q14q")
LAYER_CALL: Final = struct.Struct(f"={_PROBLEM}4q16q6q7q7q1q7q7q2q")
TABLES_CALL: Final = struct.Struct("=4q")


class Fault(ctypes.Structure):
    """``gdn_fault``: what a call was refused for."""

    _fields_ = (("row", ctypes.c_int64), ("value", ctypes.c_int64), ("limit", ctypes.c_int64))


@dataclass(frozen=True)
class Library:
    """The loaded library.

    Attributes:
        rule, layer: ``gdn_rule`` and ``gdn_layer``; they release the interpreter's lock.
        count_tables, write_tables: ``gdn_count_tables`` and ``gdn_write_tables``.
        best_path: Name of the widest instruction set there is here.
        paths: Names of all that can be asked for.
        chunk_size: Tokens a chunk.
    """

    rule: ctypes._NamedFuncPointer
    layer: ctypes._NamedFuncPointer
    count_tables: ctypes._NamedFuncPointer
    write_tables: ctypes._NamedFuncPointer
    best_path: str
    paths: tuple[str, ...]
    chunk_size: int


def find_library() -> Path | None:
    """The file, wherever this package's files lie; None where it was installed without."""
    for folder in gdn_dispatch_cpu.__path__:
        file = Path(folder) / _FILE
        if file.is_file():
            return file
    return None


@cache
def load_library() -> Library:
    """Load the library.

    Raises:
        OSError: It is not there, cannot be loaded, or is of another version than this module.
    """
    file = find_library()
    if file is None:
        raise OSError(f"{_FILE} is not installed")
    handle = ctypes.CDLL(str(file))
    for name, call in (("rule", RULE_CALL), ("layer", LAYER_CALL), ("tables", TABLES_CALL)):
        try:
            size = getattr(handle, f"gdn_{name}_call_size")
        except AttributeError:
            _refuse_version(file)
        size.restype, size.argtypes = ctypes.c_int64, []
        if size() != call.size:
            _refuse_version(file)
    for name in ("best_path", "has_path", "chunk_size"):
        function = getattr(handle, f"gdn_{name}")
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_int64] if name == "has_path" else []
    handle.gdn_rule.restype = handle.gdn_layer.restype = ctypes.c_int64
    handle.gdn_rule.argtypes = [ctypes.c_char_p]
    handle.gdn_layer.argtypes = [ctypes.c_char_p, ctypes.POINTER(Fault)]
    handle.gdn_count_tables.restype = handle.gdn_write_tables.restype = None
    text, memory = ctypes.c_char_p, ctypes.c_void_p
    handle.gdn_count_tables.argtypes = [text, text, memory]
    handle.gdn_write_tables.argtypes = [text, text, text, memory]
    names = {number: name for name, number in PATHS.items()}
    return Library(
        rule=handle.gdn_rule,
        layer=handle.gdn_layer,
        count_tables=handle.gdn_count_tables,
        write_tables=handle.gdn_write_tables,
        best_path=names[handle.gdn_best_path()],
        paths=tuple(name for name, number in PATHS.items() if handle.gdn_has_path(number)),
        chunk_size=handle.gdn_chunk_size(),
    )


def _refuse_version(file: Path) -> NoReturn:
    raise OSError(f"{file} was built from other sources than {__name__}: reinstall the package")
