"""What an ONNX file refers to, read from its protobuf fields before a runtime sees the file.

onnxruntime guards external data itself, but vendor builds on older boards do not, so the daemon looks first: which
files the model wants to read, and which operator domains it needs. Only the few messages that can carry such a
reference are walked; weights are skipped, not read. Field numbers are those of onnx.proto (ONNX IR version 13, checked
against the `onnx` package in the tests).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.runtimes.base import ModelError

MAX_FIELDS = 5_000_000
"""Fields walked in one model. Large public graphs have some 100,000; a hostile one could keep us busy for hours."""
MAX_DEPTH = 64
"""Nesting of messages: graphs in attributes of nodes in graphs."""

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING, _ENTRY = range(9)

# Per message: field number -> the message inside it. Everything not listed is skipped.
_CHILDREN: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _TENSOR: {13: _ENTRY},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
}
# Per message: the string fields that are wanted.
_STRINGS: dict[int, dict[int, str]] = {
    _NODE: {4: "type", 7: "domain"},
    _FUNCTION: {1: "name", 10: "domain"},
    _ENTRY: {1: "key", 2: "value"},
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_STRING = 4096


@dataclass
class OnnxReferences:
    """What a model needs beside itself."""

    external: set[str] = field(default_factory=set)  # "location" of every tensor kept in another file
    operators: set[tuple[str, str]] = field(default_factory=set)  # (domain, type) of every node
    functions: set[tuple[str, str]] = field(default_factory=set)  # (domain, name) the model defines itself


def read_references(path: Path) -> OnnxReferences:
    """Walk the ONNX file at `path`. Raises ModelError if it is not a well-formed ONNX model."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _Walker(mapped).model(path.name)
    except OSError as error:
        raise ModelError(f"the model file {path.name} cannot be read: {error.strerror}") from error


class _Walker:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._found = OnnxReferences()
        self._fields = 0

    def model(self, name: str) -> OnnxReferences:
        try:
            has_graph = self._walk(_MODEL, 0, len(self._data), 0)
        except _Malformed as error:
            raise ModelError(f"{name} is not an ONNX model: {error}") from None
        if not has_graph:
            raise ModelError(f"{name} is not an ONNX model: it has no graph")
        return self._found

    def _walk(self, kind: int, start: int, end: int, depth: int) -> bool:
        """Walk one message; returns whether it held a graph."""
        if depth > MAX_DEPTH:
            raise _Malformed(f"its messages are nested deeper than {MAX_DEPTH}")
        children = _CHILDREN.get(kind, {})
        wanted = _STRINGS.get(kind, {})
        strings: dict[str, str] = {}
        has_graph = False
        for number, at, stop in self._length_fields(start, end):
            child = children.get(number)
            if child is not None:
                self._walk(child, at, stop, depth + 1)
                has_graph |= child == _GRAPH
            elif number in wanted:
                if stop - at > _MAX_STRING:
                    raise _Malformed("a name is too long")
                strings[wanted[number]] = self._data[at:stop].decode("utf-8", "replace")
        self._note(kind, strings)
        return has_graph

    def _note(self, kind: int, strings: dict[str, str]) -> None:
        domain = strings.get("domain", "")
        if kind == _NODE:
            self._found.operators.add((domain, strings.get("type", "")))
        elif kind == _FUNCTION:
            self._found.functions.add((domain, strings.get("name", "")))
        elif kind == _ENTRY and strings.get("key") == "location":
            self._found.external.add(strings.get("value", ""))

    def _length_fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(field number, start, end) of every length-delimited field; the others are stepped over."""
        while at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise _Malformed(f"it has more than {MAX_FIELDS} fields")
            tag, at = self._varint(at, end)
            if not 8 <= tag < 1 << 32:  # protobuf refuses field 0, and would drop the upper bits of a longer tag
                raise _Malformed("its fields make no sense")
            number, wire = tag >> 3, tag & 7
            if wire == _BYTES:
                length, at = self._varint(at, end)
                if length > end - at:
                    raise _Malformed("a field is longer than the file")
                yield number, at, at + length
                at += length
            elif wire == _VARINT:
                _, at = self._varint(at, end)
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            else:
                raise _Malformed("its fields make no sense")
        if at != end:
            raise _Malformed("a field is longer than the file")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                raise _Malformed("it is cut short")
            byte = self._data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
        raise _Malformed("its fields make no sense")


class _Malformed(Exception):
    """Why the bytes are no ONNX model; becomes a ModelError that names the file."""
