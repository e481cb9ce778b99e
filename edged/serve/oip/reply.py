"""Infer replies: JSON, binary tensors, the classification extension. Pure.

`encode_outputs` writes the tensors and belongs into a model thread; `EncodedOutputs.body` puts the rest around them
and costs nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from edged.serve.oip.datatypes import WIRE, Array, all_finite, pack_bytes
from edged.serve.oip.request import Wanted
from edged.serve.oip.signature import Signature
from edged.serve.oip.tensors import RequestError
from edgekit.runtimes import ModelError

_encoder = msgspec.json.Encoder()
_LITTLE = sys.byteorder == "little"
_REMEMBERED = 256
_SMALL = 4096  # bytes that are copied sooner than shown
_entries: dict[tuple[str, np.dtype[Any], tuple[int, ...], int], bytes] = {}
"""JSON of binary outputs by what it consists of: the same few come again and again."""


@dataclass(slots=True)
class EncodedOutputs:
    """The outputs of one request: the JSON list of them, and the binary tensors in its order."""

    entries: bytes
    tensors: list[bytes | memoryview]

    def body(
        self, model: bytes, id: str | None, parameters: Mapping[str, Any] | None = None
    ) -> tuple[list[bytes | memoryview], int | None]:
        """The reply's buffers, and the length of the first, the JSON, if tensors follow it (None: it is all).

        `model` is `model_prefix` of the one that answered. The order of the keys is Triton's.
        """
        start = b"{" if id is None else b'{"id":' + _encoder.encode(id) + b","
        extra = b'"parameters":' + _encoder.encode(parameters) + b"," if parameters else b""
        head = b"".join((start, model, extra, b'"outputs":', self.entries, b"}"))
        return [head, *self.tensors], len(head) if self.tensors else None


def model_prefix(name: str, version: str) -> bytes:
    """What every reply of a model says."""
    return _encoder.encode({"model_name": name, "model_version": version})[1:-1] + b","


def encode_outputs(wanted: Sequence[Wanted], results: Mapping[str, Array], signature: Signature) -> EncodedOutputs:
    """Write these outputs of a run.

    Raises RequestError where a result cannot be written as wished, ModelError for NaN and infinity where they cannot
    be: in JSON, and in anything that a classifier says.
    """
    entries: list[bytes] = []
    tensors: list[bytes | memoryview] = []
    for output in wanted:
        array = results[output.name]
        if array.dtype not in WIRE:
            raise RequestError(f"output '{output.name}' is {array.dtype.name}, which the protocol cannot carry")
        if (signature.strict or not output.binary or output.classes) and not all_finite(array):
            raise ModelError(f"output '{output.name}' contains NaN or infinity")
        if output.classes:
            array = classified(array, output.classes, signature.labels.get(output.name, ()))
        if output.binary:
            data = _binary(array)
            entries.append(_binary_entry(output.name, array, len(data)))
            tensors.append(data)
        else:
            entries.append(_json_entry(output.name, array))
    return EncodedOutputs(b"[" + b",".join(entries) + b"]", tensors)


def classified(array: Array, classes: int, labels: Sequence[str]) -> Array:
    """The `classes` largest values of each sample as text `value:index[:label]`, largest first.

    The first dimension counts samples if there is more than one dimension; the rest of a sample is taken as one row.
    """
    if array.dtype.kind not in "fiu":
        raise RequestError("only numbers can be ranked by 'classification'")
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)
    count = min(classes, rows.shape[1])
    form = "{:.6f}:{}" if array.dtype.kind == "f" else "{}:{}"
    found = np.empty((rows.shape[0], count), dtype=object)
    for at, row in enumerate(rows):
        # Of equal values the first one leads, so the sign is turned and not the order.
        order = np.argsort(-row.astype(np.float64), kind="stable")[:count]
        for place, index in enumerate(order):
            text = form.format(row[index], index)
            found[at, place] = f"{text}:{labels[index]}" if index < len(labels) else text
    return found if array.ndim > 1 else found[0]


def _binary(array: Array) -> bytes | memoryview:
    if array.dtype.kind == "O":
        return pack_bytes(_text(element).encode("utf-8", "surrogateescape") for element in array.flat)
    if _LITTLE and array.nbytes <= _SMALL:
        return array.tobytes()
    little = array
    if not array.flags.c_contiguous or not _LITTLE:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    # Without a copy: nobody writes to a result once it is here. An empty array has no flat memory to show.
    return little.reshape(-1).view(np.uint8).data if little.size else b""


def _binary_entry(name: str, array: Array, size: int) -> bytes:
    key = (name, array.dtype, array.shape, size)
    entry = _entries.get(key)
    if entry is None:
        entry = _encoder.encode(_description(name, array) | {"parameters": {"binary_data_size": size}})
        if len(_entries) >= _REMEMBERED:
            _entries.clear()
        _entries[key] = entry
    return entry


def _json_entry(name: str, array: Array) -> bytes:
    if array.dtype == np.float16:
        raise RequestError(f"output '{name}': FP16 can be returned as binary data only")
    data = array.ravel().tolist()
    if array.dtype.kind == "O":
        data = [_text(element) for element in data]
    return _encoder.encode(_description(name, array) | {"data": data})


def _description(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "datatype": WIRE[array.dtype], "shape": list(array.shape)}


def _text(element: object) -> str:
    return element.decode("utf-8", "replace") if isinstance(element, bytes) else str(element)


def rounded(value: float) -> float:
    """Milliseconds for people: three decimals, and never NaN."""
    return round(value, 3) if math.isfinite(value) else 0.0
