"""Infer requests: JSON, the binary tensor extension, raw tensors, pictures and pixels. Pure.

Wire rules (those of Triton, whose client this must satisfy): a body is a JSON header and then the raw tensors in the
order of `inputs`, little endian, without padding; `Inference-Header-Content-Length` is the length of the JSON. Sizes
match exactly or the request is refused. A header length of 0 means that the whole body is the one input.

Reading has two halves. `read_request` looks at the header: names, sizes, parameters; it takes microseconds, so that it
is known where and how urgently the request has to wait. `InferRequest.feeds` makes the arrays and belongs into a model
thread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from edged.serve.http import Buffer, Request
from edged.serve.oip.datatypes import SIZES, Array, all_finite
from edged.serve.oip.signature import MAX_RANK, Port, Signature, shape_text
from edged.serve.oip.tensors import (
    MAX_PICTURES,
    Feeds,
    Given,
    RequestError,
    Unsupported,
    has_data,
    is_pixels,
    read_data,
)

MAX_STREAM = 128
"""Characters of the parameter `stream`."""
MAX_REMEMBERED = 1024
"""Bytes of a header that is worth remembering."""
REMEMBERED = 64
"""Headers remembered for each model."""
MAX_TIMEOUT_US = 600_000_000


class _Input(msgspec.Struct, gc=False):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    data: msgspec.Raw = msgspec.Raw(b"")


class _Output(msgspec.Struct, gc=False):
    name: str
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)


class _Header(msgspec.Struct, gc=False):
    inputs: list[_Input]
    id: str | int | None = None
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    outputs: list[_Output] = msgspec.field(default_factory=list)


_decoder = msgspec.json.Decoder(_Header)


@dataclass(slots=True)
class Wanted:
    """One output of the reply."""

    name: str
    binary: bool = False
    classes: int = 0  # the likeliest so many as text instead of the tensor


@dataclass(slots=True)
class InferRequest:
    """A request whose header has been checked; `feeds` reads its data."""

    signature: Signature
    inputs: list[Given]
    outputs: list[Wanted]
    id: str | None = None
    priority: int = 0  # 0 = the model's own class, 1 = likewise, each number more is a class less
    timeout_s: float | None = None
    stream: str = ""
    timings: bool = False

    def feeds(self) -> Feeds:
        """Read and check the data of every input. Raises RequestError."""
        return read_data(self.inputs, self.signature)

    @property
    def batch(self) -> int:
        """How many samples it carries."""
        if not self.inputs or not self.inputs[0].shape:
            return 1
        first = self.inputs[0]
        if first.port.picture and first.datatype != first.port.datatype:
            return first.shape[0] if first.datatype == "BYTES" or len(first.shape) == 4 else 1
        return first.shape[0] if self.signature.batched else 1


@dataclass(frozen=True, slots=True)
class Plain:
    """What every request with one and the same header has in common, if it has one tensor and wants tensors.

    Worked out once: the model threads share the interpreter's lock, and between two runs, whose data empties the CPU's
    caches, each line costs several times what it costs alone.
    """

    signature: Signature
    port: Port
    shape: tuple[int, ...]
    copied: bool  # the bytes are not as the runtime wants them
    outputs: list[Wanted]
    batch: int
    priority: int
    timeout_s: float | None
    stream: str
    timings: bool
    id: str | None = None

    def array(self, binary: memoryview) -> Array:
        """The tensor in these bytes, as many as the header says. Raises RequestError."""
        port = self.port
        array: Array = np.frombuffer(binary, port.wire_dtype).reshape(self.shape)
        if self.copied or not array.flags.aligned:
            array = array.astype(port.dtype)
        if port.picture and not all_finite(array):
            raise RequestError(f"input '{port.name}' contains NaN or infinity")
        return array


@dataclass(slots=True)
class PlainRequest:
    """One of them."""

    plain: Plain
    binary: memoryview


def binary_at(request: Request) -> int:
    """Where the tensors begin in the body of this request, by its HTTP header; 0 where it does not say."""
    length = request.headers.get("inference-header-content-length", "")
    return int(length) if length.isascii() and length.isdigit() and len(length) <= 12 else 0


def json_size(body: Buffer, header_length: str | None) -> int:
    """Bytes of JSON in a request: what reading its header costs."""
    if header_length is None:
        return len(body)
    return min(int(header_length), len(body)) if header_length.isdigit() and len(header_length) < 12 else 0


def read_request(
    body: Buffer, header_length: str | None, signature: Signature, json_output: bool = False
) -> InferRequest | PlainRequest:
    """Read a request's header; `header_length` is the HTTP header of that name.

    A PlainRequest is one whose header was read before. `json_output`: the reply to a raw tensor is JSON instead of
    binary. Raises RequestError.
    """
    if header_length is None:
        return _assemble(_parse(body), memoryview(b""), signature)
    if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 12:
        raise RequestError(f"Inference-Header-Content-Length must be a number of bytes, got '{header_length[:40]}'")
    length = int(header_length)
    if length == 0:
        return _raw(memoryview(body), signature, json_output)
    if length > len(body):
        raise RequestError(f"inference header size should be in range (0, {len(body)}), got: {length}")
    view = memoryview(body)
    if length > MAX_REMEMBERED:
        return _assemble(_parse(view[:length]), view[length:], signature)
    key = (bytes(view[:length]), len(body) - length)
    known: _Remembered | Plain | None = signature.remembered.get(key)
    if known is not None:
        binary = view[length:]
        return PlainRequest(known, binary) if isinstance(known, Plain) else known.again(binary)
    request = _assemble(_parse(key[0]), view[length:], signature)
    if request.id is None and all(given.raw is not None for given in request.inputs):
        if len(signature.remembered) >= REMEMBERED:
            signature.remembered.clear()
        signature.remembered[key] = _plain(request) or _Remembered(request)
    return request


def _plain(request: InferRequest) -> Plain | None:
    """Whether, and how, requests with this one's header can be read by `Plain`."""
    given = request.inputs[0]
    port = given.port
    usual = given.datatype == port.datatype and port.datatype not in ("BYTES", "BOOL")
    if len(request.inputs) != 1 or not usual or not all(one.binary and not one.classes for one in request.outputs):
        return None
    return Plain(
        request.signature,
        port,
        tuple(given.shape),
        not port.wire_dtype.isnative,
        request.outputs,
        request.batch,
        request.priority,
        request.timeout_s,
        request.stream,
        request.timings,
    )


class _Remembered:
    """What a header said, for the next request with the same one: a client sends the same few all the time.

    Equal bytes of JSON before as many bytes of tensors mean the same request, so nothing is checked a second time.
    """

    __slots__ = ("_inputs", "_request")

    def __init__(self, request: InferRequest) -> None:
        self._inputs = [
            (given.port, given.shape, given.datatype, 0 if given.raw is None else len(given.raw), given.base64)
            for given in request.inputs
        ]
        self._request = replace(request, inputs=[])  # without the views, which would keep its body

    def again(self, binary: memoryview) -> InferRequest:
        """The same request with the tensors in `binary`."""
        old, at = self._request, 0
        inputs = []
        for taker, shape, datatype, size, encoded in self._inputs:
            inputs.append(Given(taker, shape, datatype, binary[at : at + size], None, encoded))
            at += size
        return InferRequest(
            old.signature, inputs, old.outputs, None, old.priority, old.timeout_s, old.stream, old.timings
        )


def _parse(data: Buffer) -> _Header:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"failed to parse the request JSON buffer: {error}") from None


# --- the header -------------------------------------------------------------------------------------------------------


def _assemble(header: _Header, binary: memoryview, signature: Signature) -> InferRequest:
    request = InferRequest(signature, [], [])
    if header.id is not None:
        request.id = str(header.id)
    known, seen = signature.inputs, set()
    for entry in header.inputs:
        port = known.get(entry.name)
        if port is None:
            raise RequestError(f"unexpected inference input '{entry.name[:100]}' for model '{signature.model}'")
        if port.name in seen:
            raise RequestError(f"input '{port.name}' is given twice for model '{signature.model}'")
        seen.add(port.name)
        if "shared_memory_region" in entry.parameters:
            raise Unsupported("shared memory is not supported; send the tensor as binary data")
        raw, binary = _take_binary(entry, binary, len(header.inputs) == 1, signature)
        encoded = entry.parameters.get("content_type") == "base64"
        request.inputs.append(Given(port, entry.shape, entry.datatype, raw, entry.data, encoded))
    if binary:
        raise RequestError(f"unexpected additional input data for model '{signature.model}'")
    if len(seen) != len(known):
        missing = next(name for name in known if name not in seen)
        raise RequestError(
            f"expected {len(known)} inputs but got {len(header.inputs)} inputs for model '{signature.model}'; "
            f"'{missing}' is missing"
        )
    for given in request.inputs:
        _check(given, signature)
    if header.parameters:
        _read_parameters(header.parameters, request)
    request.outputs = _wanted(header, signature)
    return request


def _take_binary(
    entry: _Input, binary: memoryview, only: bool, signature: Signature
) -> tuple[memoryview | None, memoryview]:
    """The input's own bytes (None if its data is JSON) and the bytes behind them."""
    size = entry.parameters.get("binary_data_size")
    in_json = has_data(entry.data)
    if size is None:
        if in_json or not binary:
            return None, binary
        # The size may be left out where it follows from the type, or where there is nothing else in the body.
        item = SIZES.get(entry.datatype)
        size = len(binary) if only else item * _count(entry.shape, entry.name) if item else None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise RequestError(f"binary_data_size of input '{entry.name[:100]}' must be a number of bytes")
    if in_json:
        raise RequestError(f"input '{entry.name[:100]}' has both 'data' and 'binary_data_size'")
    if size > len(binary):
        raise RequestError(
            f"unexpected size for input '{entry.name[:100]}', expecting {size - len(binary)} additional bytes "
            f"for model '{signature.model}'"
        )
    return binary[:size], binary[size:]


def _count(shape: Sequence[int], name: str) -> int:
    """Number of elements of a declared shape. Raises RequestError for a shape that cannot be."""
    if len(shape) > MAX_RANK or (shape and not (min(shape) > 0 and max(shape) < 1 << 31)):
        raise RequestError(f"the shape {list(shape[:MAX_RANK])} of input '{name[:100]}' is not usable")
    return math.prod(shape)


def _check(given: Given, signature: Signature) -> None:
    """Type, shape and size of one input against the model's."""
    port = given.port
    count = _count(given.shape, port.name)
    if port.picture and (given.datatype == "BYTES" or is_pixels(given)):
        pictures = count if given.datatype == "BYTES" else given.shape[0] if len(given.shape) == 4 else 1
        if pictures > MAX_PICTURES:
            raise RequestError(
                f"input '{port.name}' has {pictures} pictures; {MAX_PICTURES} are allowed in one request"
            )
        if given.datatype == "UINT8":
            _check_size(given, count, signature)
        return
    if given.datatype != port.datatype and not (given.datatype == "BF16" and port.datatype == "FP32"):
        raise RequestError(
            f"inference input '{port.name}' data-type is '{given.datatype[:20]}', "
            f"but model '{signature.model}' expects '{port.datatype}'"
        )
    if not port.info.accepts(given.shape):
        raise RequestError(
            f"unexpected shape for input '{port.name}' for model '{signature.model}'. "
            f"Expected {shape_text(port.shape)}, got {shape_text(given.shape)}"
        )
    if given.datatype != "BYTES":
        _check_size(given, count * SIZES[given.datatype], signature)


def _check_size(given: Given, expected: int, signature: Signature) -> None:
    if given.raw is not None and len(given.raw) != expected:
        raise RequestError(
            f"input byte size mismatch for input '{given.port.name}' for model '{signature.model}'. "
            f"Expected {expected}, got {len(given.raw)}"
        )


def _read_parameters(parameters: dict[str, Any], request: InferRequest) -> None:
    """Those that mean something here; any others are the client's own."""
    for key in parameters:
        if key.startswith("triton_"):
            raise RequestError(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
            )
    request.priority = _whole(parameters, "priority", 2**32)
    timeout = _whole(parameters, "timeout", MAX_TIMEOUT_US)
    request.timeout_s = timeout / 1e6 if timeout else None
    request.timings = _flag(parameters, "timings", False)
    stream = parameters.get("stream", "")
    if not isinstance(stream, str) or len(stream) > MAX_STREAM:
        raise RequestError(f"the parameter 'stream' must be text of at most {MAX_STREAM} characters")
    request.stream = stream


def _whole(parameters: dict[str, Any], key: str, most: int) -> int:
    value = parameters.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise RequestError(f"the parameter '{key}' must be a whole number from 0 to {most}")
    return value


def _flag(parameters: dict[str, Any], key: str, default: bool, where: str = "the parameter ") -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise RequestError(f"{where}'{key}' must be true or false")
    return value


def _wanted(header: _Header, signature: Signature) -> list[Wanted]:
    default = _flag(header.parameters, "binary_data_output", False) if header.parameters else False
    if not header.outputs:
        return [Wanted(name, default) for name in signature.outputs]
    wanted: dict[str, Wanted] = {}
    for output in header.outputs:
        if output.name not in signature.outputs:
            raise RequestError(f"unexpected inference output '{output.name[:100]}' for model '{signature.model}'")
        if output.name in wanted:
            raise RequestError(f"output '{output.name}' is asked for twice for model '{signature.model}'")
        parameters = output.parameters
        if "shared_memory_region" in parameters:
            raise Unsupported(f"output '{output.name}': shared memory is not supported")
        where = f"output '{output.name}': "
        binary = _flag(parameters, "binary_data", default, where)
        classes = _whole(parameters, "classification", 2**31)
        wanted[output.name] = Wanted(output.name, binary, classes)
    return list(wanted.values())


def _raw(body: memoryview, signature: Signature, json_output: bool) -> InferRequest:
    """The whole body is the one input; everything comes back as binary unless JSON is asked for."""
    if len(signature.inputs) != 1:
        raise RequestError(
            f"model '{signature.model}' has {len(signature.inputs)} inputs; raw data can stand for one only"
        )
    (port,) = signature.inputs.values()
    shape = [1 if size == -1 and axis == 0 else size for axis, size in enumerate(port.shape)]
    variable = shape.count(-1)
    if variable > 1:
        raise RequestError(f"input '{port.name}' has {variable} variable dimensions; raw data can stand for one only")
    if port.datatype == "BYTES":
        if any(size not in (1, -1) for size in shape):
            raise RequestError(f"input '{port.name}' takes more than one text; raw data can stand for one only")
        shape = [1] * len(shape)
        body = memoryview(len(body).to_bytes(4, "little") + bytes(body))
    elif variable:
        fixed = math.prod(size for size in shape if size != -1) * SIZES[port.datatype]
        shape = [max(1, len(body) // max(1, fixed)) if size == -1 else size for size in shape]
    given = Given(port, shape, port.datatype, body)
    _check(given, signature)
    return InferRequest(signature, [given], [Wanted(name, not json_output) for name in signature.outputs])
