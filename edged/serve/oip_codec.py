"""Open Inference Protocol v2 bodies: JSON, the binary tensor extension, raw tensors and pictures as BYTES. Pure.

Wire rules (those of Triton, whose client this must satisfy): a body is a JSON header and then the raw tensors in the
order of `inputs`, little endian, without padding; `Inference-Header-Content-Length` is the length of the JSON. Sizes
match exactly or the request is refused. A header length of 0 means that the whole body is the one input.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import TensorInfo

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
}
"""numpy's name of a type -> the protocol's."""
MAX_PICTURES = 64
"""Pictures in one request."""
MAX_RANK = 8

Array = NDArray[Any]


class RequestError(ValueError):
    """The request is malformed or does not fit the model: status 400, the text says what is wrong."""


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | int | None = None
    parameters: dict[str, Any] = {}
    outputs: list[_Output] = []


_decoder = msgspec.json.Decoder(_Request)


@dataclass(slots=True)
class InferRequest:
    """A checked request: arrays that fit the model, or pictures that stand for its one picture input."""

    id: str | None = None
    arrays: dict[str, Array] = field(default_factory=dict)
    pictures: dict[str, list[bytes]] = field(default_factory=dict)
    outputs: list[tuple[str, bool]] = field(default_factory=list)  # name, binary; in reply order


@dataclass(frozen=True, slots=True)
class Signature:
    """What a request is checked against."""

    model: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    picture_input: str  # the input that takes pictures, "" for none


def parse_request(body: bytes, header_length: str | None, signature: Signature) -> InferRequest:
    """Read an infer request; `header_length` is the header of that name. Raises RequestError."""
    if header_length is None:
        return _assemble(_parse_json(body), memoryview(b""), signature)
    if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 12:
        raise RequestError(f"Inference-Header-Content-Length must be a number of bytes, got '{header_length[:40]}'")
    length = int(header_length)
    if length == 0:
        return _raw(body, signature)
    if length > len(body):
        raise RequestError(f"inference header size should be in range (0, {len(body)}), got: {length}")
    return _assemble(_parse_json(body[:length]), memoryview(body)[length:], signature)


def _parse_json(data: bytes) -> _Request:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"failed to parse the request JSON buffer: {error}") from None


def _assemble(request: _Request, binary: memoryview, signature: Signature) -> InferRequest:
    for key in request.parameters:
        if key.startswith("triton_"):
            raise RequestError(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
            )
    result = InferRequest(id=None if request.id is None else str(request.id))
    known = {tensor.name: tensor for tensor in signature.inputs}
    for given in request.inputs:
        tensor = known.get(given.name)
        if tensor is None:
            raise RequestError(f"unexpected inference input '{given.name[:100]}' for model '{signature.model}'")
        if tensor.name in result.arrays or tensor.name in result.pictures:
            raise RequestError(f"input '{tensor.name}' is given twice for model '{signature.model}'")
        if "shared_memory_region" in given.parameters:
            raise RequestError("shared memory is not supported; send the tensor as binary data")
        raw, binary = _take_binary(given, binary, len(request.inputs) == 1, signature)
        if given.datatype == "BYTES" and tensor.name == signature.picture_input:
            result.pictures[tensor.name] = _pictures(given, raw, signature)
        else:
            _check_signature(given, tensor, signature)
            array = _from_json(given, tensor) if raw is None else _from_binary(raw, given.shape, tensor, signature)
            result.arrays[tensor.name] = _finite(array, tensor)
    if binary:
        raise RequestError(f"unexpected additional input data for model '{signature.model}'")
    missing = [name for name in known if name not in result.arrays and name not in result.pictures]
    if missing:
        raise RequestError(
            f"expected {len(known)} inputs but got {len(request.inputs)} inputs for model '{signature.model}'; "
            f"'{missing[0]}' is missing"
        )
    result.outputs = _wanted(request, signature)
    return result


def _take_binary(
    given: _Input, binary: memoryview, only: bool, signature: Signature
) -> tuple[memoryview | None, memoryview]:
    """The input's own bytes (None if its data is JSON) and the bytes behind them."""
    size = given.parameters.get("binary_data_size")
    if size is None:
        if given.data is not None or not binary:
            return None, binary
        # The size may be left out where it follows from the type, or where there is nothing else in the body.
        item = _item_size(given.datatype)
        size = len(binary) if only else item * _count(given) if item else None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise RequestError(f"binary_data_size of input '{given.name[:100]}' must be a number of bytes")
    if given.data is not None:
        raise RequestError(f"input '{given.name[:100]}' has both 'data' and 'binary_data_size'")
    if size > len(binary):
        raise RequestError(
            f"unexpected size for input '{given.name[:100]}', expecting {size - len(binary)} additional bytes "
            f"for model '{signature.model}'"
        )
    return binary[:size], binary[size:]


def _item_size(datatype: str) -> int:
    """Bytes per element, 0 for types without a fixed size and unknown ones."""
    return next((np.dtype(name).itemsize for name, known in DATATYPES.items() if known == datatype), 0)


def _count(given: _Input) -> int:
    """Number of elements of the declared shape. Raises RequestError for a shape that cannot be."""
    if not 0 < len(given.shape) <= MAX_RANK or any(not 0 < size < 1 << 31 for size in given.shape):
        raise RequestError(f"the shape {given.shape[:MAX_RANK]} of input '{given.name[:100]}' is not usable")
    return math.prod(given.shape)


def _check_signature(given: _Input, tensor: TensorInfo, signature: Signature) -> None:
    expected = DATATYPES.get(tensor.dtype, tensor.dtype)
    if given.datatype != expected:
        raise RequestError(
            f"inference input '{tensor.name}' data-type is '{given.datatype[:20]}', "
            f"but model '{signature.model}' expects '{expected}'"
        )
    _count(given)
    if not tensor.accepts(given.shape):
        raise RequestError(
            f"unexpected shape for input '{tensor.name}' for model '{signature.model}'. "
            f"Expected {_shape_text(wire_shape(tensor))}, got {_shape_text(given.shape)}"
        )


def _from_json(given: _Input, tensor: TensorInfo) -> Array:
    if given.data is None:
        raise RequestError(f"input '{tensor.name}' has no data")
    if tensor.dtype == "float16":
        raise RequestError(f"input '{tensor.name}': FP16 can be sent as binary data only")
    try:
        array: Array = np.asarray(given.data)
    except (ValueError, OverflowError):
        raise RequestError(f"Unable to parse 'data' of input '{tensor.name}': the rows differ in length") from None
    wanted = np.dtype(tensor.dtype)
    if wanted == np.uint64 and array.dtype.kind == "f":
        # numpy makes floats of whole numbers when only some of them exceed int64; those are kept exact.
        exact = np.asarray(given.data, dtype=object)
        if all(type(value) is int and 0 <= value < 2**64 for value in exact.flat):
            array = exact.astype(np.uint64)
    kinds = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[wanted.kind]
    if array.dtype.kind not in kinds:
        raise RequestError(f"Unable to parse 'data' of input '{tensor.name}': {tensor.dtype} numbers belong there")
    if wanted.kind in "ui" and array.size:
        bounds = np.iinfo(wanted)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise RequestError(f"Unable to parse 'data' of input '{tensor.name}': a number does not fit {tensor.dtype}")
    nested_otherwise = array.ndim > 1 and array.shape != tuple(given.shape)
    if array.size != _count(given) or nested_otherwise:
        raise RequestError(f"Unable to parse 'data' of input '{tensor.name}': it does not have the shape it declares")
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is refused as such
        return array.astype(wanted).reshape(given.shape)


def _from_binary(raw: memoryview, shape: Sequence[int], tensor: TensorInfo, signature: Signature) -> Array:
    dtype = np.dtype(tensor.dtype).newbyteorder("<")
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise RequestError(
            f"input byte size mismatch for input '{tensor.name}' for model '{signature.model}'. "
            f"Expected {expected}, got {len(raw)}"
        )
    if tensor.dtype == "bool" and raw and max(raw) > 1:
        raise RequestError(f"input '{tensor.name}' has a BOOL that is neither 0 nor 1")
    # The tensor lies wherever the JSON before it ends; runtimes may read it with instructions that need alignment.
    return np.require(np.frombuffer(raw, dtype).reshape(shape), np.dtype(tensor.dtype), "A")


def _finite(array: Array, tensor: TensorInfo) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(f"input '{tensor.name}' contains NaN or infinity")
    return array


def _pictures(given: _Input, raw: memoryview | None, signature: Signature) -> list[bytes]:
    """The elements of a BYTES tensor: u32 little-endian length and the bytes of one JPEG or PNG each."""
    if raw is None:
        raise RequestError(f"input '{given.name}': pictures can be sent as binary data only")
    count = _count(given)
    if count > MAX_PICTURES:
        raise RequestError(f"input '{given.name}' has {count} pictures; {MAX_PICTURES} are allowed in one request")
    pictures: list[bytes] = []
    at = 0
    while at < len(raw) and len(pictures) < count:
        if len(raw) - at < 4:
            break
        (length,) = struct.unpack_from("<I", raw, at)
        if length > len(raw) - at - 4:
            break
        pictures.append(bytes(raw[at + 4 : at + 4 + length]))
        at += 4 + length
    if at != len(raw) or len(pictures) != count:
        raise RequestError(
            f"unexpected number of string elements {len(pictures)} for inference input '{given.name}' "
            f"for model '{signature.model}', expecting {count} that fill the data exactly"
        )
    return pictures


def _raw(body: bytes, signature: Signature) -> InferRequest:
    """The whole body is the one input; everything comes back as binary."""
    if len(signature.inputs) != 1:
        raise RequestError(
            f"model '{signature.model}' has {len(signature.inputs)} inputs; raw data can stand for one only"
        )
    tensor = signature.inputs[0]
    outputs = [(output.name, True) for output in signature.outputs]
    shape = [1 if size is None and axis == 0 else size for axis, size in enumerate(tensor.shape)]
    variable = shape.count(None)
    if variable > 1:
        raise RequestError(f"input '{tensor.name}' has {variable} variable dimensions; raw data can stand for one only")
    if variable:
        fixed = math.prod(size for size in shape if size is not None) * np.dtype(tensor.dtype).itemsize
        shape = [len(body) // fixed if size is None else size for size in shape]
    exact = [size for size in shape if size is not None]
    array = _from_binary(memoryview(body), exact, tensor, signature)
    return InferRequest(arrays={tensor.name: _finite(array, tensor)}, outputs=outputs)


def _wanted(request: _Request, signature: Signature) -> list[tuple[str, bool]]:
    default = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return [(output.name, default) for output in signature.outputs]
    known = {output.name for output in signature.outputs}
    wanted: list[tuple[str, bool]] = []
    for output in request.outputs:
        if output.name not in known:
            raise RequestError(f"unexpected inference output '{output.name[:100]}' for model '{signature.model}'")
        for unsupported in ("shared_memory_region", "classification"):
            if unsupported in output.parameters:
                raise RequestError(f"output '{output.name}': the parameter '{unsupported}' is not supported")
        binary = output.parameters.get("binary_data", default)
        if not isinstance(binary, bool):
            raise RequestError(f"output '{output.name}': binary_data must be true or false")
        wanted.append((output.name, binary))
    return wanted


def encode_response(
    model: str, version: str, request: InferRequest, results: dict[str, Array]
) -> tuple[bytes, int | None]:
    """The reply's body, and the length of its JSON part if binary tensors follow it (None: it is all JSON).

    Raises RequestError where a result cannot be written as JSON.
    """
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in request.outputs:
        array = results[name]
        entry: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if binary:
            data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        elif array.dtype == np.float16:
            raise RequestError(f"output '{name}': FP16 can be returned as binary data only")
        else:
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    header: dict[str, Any] = {} if request.id is None else {"id": request.id}
    header |= {"model_name": model, "model_version": version, "outputs": entries}
    encoded = msgspec.json.encode(header)
    return (b"".join([encoded, *tail]), len(encoded)) if tail else (encoded, None)


def wire_shape(tensor: TensorInfo) -> list[int]:
    """A shape as the protocol writes it: -1 where any size is allowed."""
    return [-1 if size is None else size for size in tensor.shape]


def _shape_text(shape: Sequence[int]) -> str:
    return "[" + ",".join(str(size) for size in shape[: MAX_RANK + 1]) + "]"
