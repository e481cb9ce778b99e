"""The data of an infer request's inputs: tensors, texts, pictures and pixels from bytes or JSON. Pure."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edged.serve.oip.datatypes import Array, all_finite, from_bfloat16, unpack_bytes
from edged.serve.oip.signature import MAX_RANK, Port, Signature, port_of
from edgekit.runtimes.base import TensorInfo

MAX_PICTURES = 64
"""Pictures in one request."""

_CHANNELS = (1, 3, 4)


class RequestError(ValueError):
    """The request is malformed or does not fit the model: status 400, the text says what is wrong."""


class Unsupported(RequestError):
    """The request asks for something that Triton has and edged has not: status 501."""


@dataclass(slots=True)
class Given:
    """One input of a request: the port it is for, and where its data is."""

    port: Port
    shape: list[int]
    datatype: str
    raw: memoryview | None = None  # binary data
    data: msgspec.Raw | None = None  # else JSON
    base64: bool = False  # the JSON strings are base64


@dataclass(slots=True)
class Feeds:
    """What a model is run on: arrays that fit it, or pictures or pixels that stand for its one picture input."""

    arrays: dict[str, Array] = field(default_factory=dict)
    pictures: dict[str, list[bytes]] = field(default_factory=dict)
    pixels: dict[str, Array] = field(default_factory=dict)  # uint8, N x H x W x C


def read_data(inputs: Sequence[Given], signature: Signature) -> Feeds:
    """Read and check the data of these inputs, whose headers have been checked. Raises RequestError."""
    feeds = Feeds()
    for given in inputs:
        if given.port.picture and given.datatype == "BYTES":
            feeds.pictures[given.port.name] = _elements(given, signature, MAX_PICTURES)
        elif given.port.picture and is_pixels(given):
            feeds.pixels[given.port.name] = _pixels(given, signature)
        else:
            feeds.arrays[given.port.name] = _tensor(given, signature)
    return feeds


def has_data(data: msgspec.Raw | None) -> bool:
    """Whether an input's JSON says anything."""
    if data is None:
        return False
    text = bytes(data) if len(memoryview(data)) <= 4 else b"[...]"
    return text not in (b"", b"null")


def is_pixels(given: Given) -> bool:
    """Raw UINT8 pixels (H x W x C, or several of one size) for an input that wants something else."""
    shape = given.shape
    return (
        given.datatype == "UINT8"
        and len(shape) in (3, 4)
        and shape[-1] in _CHANNELS
        and not (given.port.datatype == "UINT8" and given.port.info.accepts(shape))
    )


def _tensor(given: Given, signature: Signature) -> Array:
    port = given.port
    if port.datatype == "BYTES":
        array = _text(given, signature)
    elif given.raw is None:
        array = _from_json(given)
    elif given.datatype == "BF16":
        array = from_bfloat16(given.raw).reshape(given.shape)
    else:
        array = np.frombuffer(given.raw, port.wire_dtype).reshape(given.shape)
        if port.datatype == "BOOL" and given.raw and max(given.raw) > 1:
            raise RequestError(f"input '{port.name}' has a BOOL that is neither 0 nor 1")
        # The tensor lies wherever the JSON before it ends; runtimes may read it with instructions that need alignment.
        if not array.flags.aligned or not array.dtype.isnative:
            array = array.astype(port.dtype)
    if port.picture and not all_finite(array):
        raise RequestError(f"input '{port.name}' contains NaN or infinity")
    return array


def _from_json(given: Given) -> Array:
    port = given.port
    if given.datatype in ("FP16", "BF16"):
        raise RequestError(f"input '{port.name}': {given.datatype} can be sent as binary data only")
    wanted = port.dtype
    data = _decoded(given)
    try:
        array: Array = np.asarray(data)
    except (ValueError, OverflowError):
        raise RequestError(f"Unable to parse 'data' of input '{port.name}': the rows differ in length") from None
    if wanted == np.uint64 and array.dtype.kind == "f":
        # numpy makes floats of whole numbers when only some of them exceed int64; those are kept exact.
        exact = np.asarray(data, dtype=object)
        if all(type(value) is int and 0 <= value < 2**64 for value in exact.flat):
            array = exact.astype(np.uint64)
    kinds = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[wanted.kind]
    if array.dtype.kind not in kinds:
        raise RequestError(f"Unable to parse 'data' of input '{port.name}': {port.text} numbers belong there")
    if wanted.kind in "ui" and array.size:
        bounds = np.iinfo(given.port.info.dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise RequestError(f"Unable to parse 'data' of input '{port.name}': a number does not fit {port.text}")
    _check_nesting(array, given)
    with np.errstate(over="ignore"):
        array = array.astype(wanted).reshape(given.shape)
    if not all_finite(array):  # JSON has no such numbers: one was too large
        raise RequestError(f"input '{port.name}' contains NaN or infinity")
    return array


def _decoded(given: Given) -> Any:
    if given.data is None or not has_data(given.data):
        raise RequestError(f"input '{given.port.name}' has no data")
    try:
        return msgspec.json.decode(given.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"Unable to parse 'data' of input '{given.port.name}': {error}") from None


def _check_nesting(array: Array, given: Given) -> None:
    """JSON data is flat, or nested as its shape says."""
    nested_otherwise = array.ndim > 1 and array.shape != tuple(given.shape)
    if array.size != math.prod(given.shape) or nested_otherwise:
        raise RequestError(
            f"Unable to parse 'data': Shape does not match true shape of 'data' field of input '{given.port.name}'"
        )


def _elements(given: Given, signature: Signature, most: int) -> list[bytes]:
    """The elements of a BYTES tensor."""
    count = math.prod(given.shape)
    if given.raw is not None:
        # Each has at least its length; nothing is reserved for what cannot be there.
        found = unpack_bytes(given.raw, count) if count <= most or count * 4 <= len(given.raw) else 0
        if isinstance(found, int):
            raise RequestError(
                f"unexpected number of string elements {found} for inference input '{given.port.name}' "
                f"for model '{signature.model}', expecting {count} that fill the data exactly"
            )
        return found
    strings = _flat(_decoded(given), 0)
    if len(strings) != count or not all(isinstance(text, str) for text in strings):
        raise RequestError(
            f"Unable to parse 'data': Shape does not match true shape of 'data' field of input '{given.port.name}', "
            "which has to be text"
        )
    if given.base64:
        try:
            return [base64.b64decode(text, validate=True) for text in strings]
        except (binascii.Error, ValueError):
            raise RequestError(f"Unable to parse 'data' of input '{given.port.name}': it is no base64") from None
    if given.port.picture:
        raise RequestError(
            f"input '{given.port.name}': pictures can be sent as binary data, or as base64 with the input's "
            'parameter "content_type": "base64"'
        )
    return [text.encode("utf-8", "surrogatepass") for text in strings]


def _flat(data: Any, depth: int) -> list[Any]:
    if not isinstance(data, list):
        return [data]
    if depth == MAX_RANK:
        return []
    return [leaf for part in data for leaf in _flat(part, depth + 1)]


def _text(given: Given, signature: Signature) -> Array:
    """A tensor of text, as runtimes want it."""
    try:
        strings = [element.decode() for element in _elements(given, signature, 0)]
    except UnicodeDecodeError:
        raise RequestError(f"input '{given.port.name}' has text that is not UTF-8") from None
    array = np.empty(len(strings), dtype=object)
    array[:] = strings
    return array.reshape(given.shape)


def _pixels(given: Given, signature: Signature) -> Array:
    shape = given.shape if len(given.shape) == 4 else [1, *given.shape]
    if given.raw is not None:
        return np.frombuffer(given.raw, np.uint8).reshape(shape)
    pixels = port_of(TensorInfo(given.port.name, (), "uint8"))
    return _from_json(Given(pixels, given.shape, "UINT8", None, given.data)).reshape(shape)
