"""Named tensors on the wire and on disk: safetensors, with a bound on everything before anything is allocated."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

MAX_HEADER = 1 << 20
"""Bytes of the JSON header; about 10,000 tensors."""
MAX_TENSORS = 10_000
_MAX_DIMENSIONS = 8
# bfloat16 and the float8 types have no numpy dtype of their own; they enter with the code that needs them.
_WIDTHS = {1: ("BOOL", "U8", "I8"), 2: ("U16", "I16", "F16"), 4: ("U32", "I32", "F32"), 8: ("U64", "I64", "F64")}
_SIZES = {dtype: width for width, dtypes in _WIDTHS.items() for dtype in dtypes}
_ORDER = ("U64", "I64", "F64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")
"""In which tensors lie in the file, then by their names: the library's order, in which each is aligned."""


class TensorError(ValueError):
    """The bytes are not safetensors, or more than the receiver allows; or the tensors cannot be written."""


def save(tensors: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Write tensors as safetensors bytes, the same as the library's `save` gives, which takes ten times as long.

    Raises TensorError for dtypes that the format (or we) do not know.
    """
    if len(tensors) > MAX_TENSORS:
        raise TensorError(f"{len(tensors)} tensors; {MAX_TENSORS} are allowed")
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "biuf" or tensor.dtype.itemsize > 8:
            raise TensorError(f'the tensor "{name}" has dtype {tensor.dtype}, which cannot be sent')
        if tensor.ndim > _MAX_DIMENSIONS:
            raise TensorError(f'the tensor "{name}" has {tensor.ndim} dimensions; {_MAX_DIMENSIONS} are allowed')
    plain = [
        (_dtype(t), name, np.asarray(t, dtype=t.dtype.newbyteorder("<"), order="C")) for name, t in tensors.items()
    ]
    plain.sort(key=lambda one: (_ORDER.index(one[0]), one[1]))
    header, end = {}, 0
    for dtype, name, tensor in plain:
        header[name] = {"dtype": dtype, "shape": tensor.shape, "data_offsets": (end, end + tensor.nbytes)}
        end += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, *(t.reshape(-1).view(np.uint8).data for *_, t in plain)))


def _dtype(tensor: np.ndarray[Any, Any]) -> str:
    kind = tensor.dtype.kind.upper()
    return "BOOL" if kind == "B" else f"{kind}{8 * tensor.dtype.itemsize}"


def load(data: bytes, max_bytes: int) -> dict[str, np.ndarray[Any, Any]]:
    """Read safetensors bytes of at most `max_bytes`; the arrays are copies that own their memory.

    Raises TensorError. The header is checked here and completely, so that no claim in it (a shape of 2^60 values, a
    range outside the data) reaches the library.
    """
    if len(data) > max_bytes:
        raise TensorError(f"{len(data)} bytes of tensors; {max_bytes} are allowed")
    places(data)
    try:
        return dict(safetensors.numpy.load(data))
    except Exception as error:  # the library raises its own type for what it alone checks
        raise TensorError(f"the tensors cannot be read: {error}") from None


def places(data: bytes) -> dict[str, tuple[int, int]]:
    """Where the tensors of safetensors bytes lie: name -> (first byte of the file, number of bytes).

    Raises TensorError unless they lie without a gap, as dtypes and shapes say.
    """
    if len(data) < 8:
        raise TensorError(f"{len(data)} bytes are too few for tensors")
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER or 8 + length > len(data):
        raise TensorError(f"the tensors announce a header of {length} bytes, which is too large")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise TensorError("the header of the tensors is not JSON") from None
    if not isinstance(header, dict):
        raise TensorError("the header of the tensors is not a JSON object")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise TensorError(f"{len(header)} tensors; {MAX_TENSORS} are allowed")
    found: dict[str, tuple[int, int]] = {}
    end = 0
    for name, entry in sorted(header.items(), key=_offset):
        start, end_here, size = _describe(name, entry)
        if start != end or end_here - start != size:
            raise TensorError(f'the tensor "{name[:100]}" does not lie where its header says')
        found[name], end = (8 + length + start, size), end_here
    if 8 + length + end != len(data):
        raise TensorError(f"the tensors need {end} bytes of data but {len(data) - 8 - length} follow")
    return found


def _offset(item: tuple[str, Any]) -> int:
    return _describe(*item)[0]


def _describe(name: str, entry: Any) -> tuple[int, int, int]:
    """(first byte, byte after the last, bytes that dtype and shape need) of one header entry."""
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        width = _SIZES[dtype]
    except (KeyError, TypeError, ValueError):
        raise TensorError(f'the header of the tensor "{name[:100]}" cannot be used') from None
    numbers = [start, end, *shape] if isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS else [-1]
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise TensorError(f'the header of the tensor "{name[:100]}" has impossible numbers')
    return start, end, width * math.prod(shape)
