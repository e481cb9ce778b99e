"""The protocol's data types: their names, their sizes and their bytes. Pure."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
"""numpy's name of a type -> the protocol's. Tensors of text are arrays of objects."""

WIRE = {np.dtype(name): wire for name, wire in DATATYPES.items()}
"""The same by the type itself, which is quicker to find than its name."""

SIZES = {wire: np.dtype(name).itemsize for name, wire in DATATYPES.items() if wire != "BYTES"} | {"BF16": 2}
"""Bytes per element of the types that have a fixed size."""

_LENGTH = struct.Struct("<I")


def unpack_bytes(raw: memoryview, count: int) -> list[bytes] | int:
    """The `count` elements of a BYTES tensor, each a 32-bit little-endian length and that many bytes.

    How many elements there are instead, where they do not fill `raw` exactly.
    """
    elements: list[bytes] = []
    at, end = 0, len(raw)
    while at + 4 <= end and len(elements) < count:
        (length,) = _LENGTH.unpack_from(raw, at)
        if length > end - at - 4:
            break
        at += 4
        elements.append(bytes(raw[at : at + length]))
        at += length
    return elements if at == end and len(elements) == count else len(elements)


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """The other way round."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def from_bfloat16(raw: memoryview) -> NDArray[np.float32]:
    """BF16 is the upper half of a float32, so this is exact."""
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def all_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite; True for whole numbers.

    The scalar product with itself is NaN or infinite if any element is, and takes a fraction of the time of looking at
    each; only where it is may large numbers be the reason. `vdot`, unlike `dot`, does not warn of those.
    """
    dtype = array.dtype
    if dtype.kind != "f":
        return True
    if dtype.itemsize >= 4 and array.flags.c_contiguous and math.isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())
