"""A runtime in a process and, if need be, an interpreter of its own: `python -m edgekit.runtimes.remote`.

Vendors' libraries pin old interpreters, and they crash. So a driver can run here, at the other end of a pipe. Frames
are those of edgekit.envelope: a JSON header (one of the messages below) and raw tensor bytes behind it, in the order
of the header's list. No pickle. Standard input carries the orders; the answers go to a copy of standard output, which
itself is turned to standard error, so that a talkative library cannot break a frame.

This module and what it imports runs on Python 3.10 with msgspec and numpy, which is what vendors' environments have.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.envelope import EnvelopeError, FrameReader, seal
from edgekit.runtimes import open_session, placement
from edgekit.runtimes.base import ModelError, Session, SessionOptions, TensorInfo

MAX_TENSORS_BYTES = 256 << 20
"""Bytes of all tensors of one run, in or out."""
MAX_TENSORS = 256
_LOOK_S = 1.0
_DTYPES = frozenset(
    ("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)


class Wire(msgspec.Struct, tag_field="type", kw_only=True):
    """Base of the messages."""


class Open(Wire, tag="open", kw_only=True):
    path: str
    runtime: str
    files: list[str]
    threads: int
    spinning: bool
    arena: bool
    provider: str
    provider_options: dict[str, str]
    contexts: int
    strict: bool
    cache: str
    declared: TensorInfo | None = None


class Array(msgspec.Struct, kw_only=True):
    name: str
    dtype: str
    shape: list[int]


class Run(Wire, tag="run", kw_only=True):
    arrays: list[Array]


class Opened(Wire, tag="opened", kw_only=True):
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    placement: dict[str, int]


class Results(Wire, tag="results", kw_only=True):
    arrays: list[Array]


class Failed(Wire, tag="failed", kw_only=True):
    reason: str


Order = Open | Run
Reply = Opened | Results | Failed


def pack(names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> tuple[list[Array], bytes]:
    """The header's list and the bytes behind it. Raises ModelError for a dtype that has no plain bytes."""
    for array in arrays:
        if array.dtype.name not in _DTYPES:
            raise ModelError(f"a tensor of {array.dtype.name} cannot be sent to another process")
    heads = [
        Array(name=name, dtype=array.dtype.name, shape=list(array.shape))
        for name, array in zip(names, arrays, strict=True)
    ]
    return heads, b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)


def unpack(heads: Sequence[Array], payload: bytes) -> list[NDArray[Any]]:
    """The arrays (read-only views). Raises ModelError unless the bytes are exactly what the list announces."""
    if len(heads) > MAX_TENSORS:
        raise ModelError(f"{len(heads)} tensors in one frame; {MAX_TENSORS} are allowed")
    arrays: list[NDArray[Any]] = []
    at = 0
    for head in heads:
        if head.dtype not in _DTYPES or len(head.shape) > 16 or any(size < 0 for size in head.shape):
            raise ModelError(f'the frame describes the tensor "{head.name[:60]}" in no sensible way')
        count = 1
        for size in head.shape:
            count *= size
        end = at + count * np.dtype(head.dtype).itemsize
        if end > len(payload):
            raise ModelError("the frame holds fewer bytes than its tensors need")
        arrays.append(np.frombuffer(payload, head.dtype, count, at).reshape(head.shape))
        at = end
    if at != len(payload):
        raise ModelError("the frame holds more bytes than its tensors need")
    return arrays


def main() -> None:
    """Serve one model until standard input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    decoder = msgspec.json.Decoder(Order)
    reader = FrameReader(MAX_TENSORS_BYTES)
    server = _Server()
    while data := os.read(0, 1 << 20):
        try:
            for header, payload in reader.feed(data):
                _write(answers, server.answer(decoder.decode(header), payload))
        except (EnvelopeError, msgspec.DecodeError, BrokenPipeError) as error:
            sys.exit(f"the other end cannot be understood: {error}")


def _end_with(parent: int) -> None:
    """End this process after its parent, even while a library hangs and keeps the device to itself."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


class _Server:
    def __init__(self) -> None:
        self._session: Session | None = None

    def answer(self, order: Order, payload: bytes) -> bytes:
        try:
            if isinstance(order, Open):
                return self._open(order)
            return self._run(order, payload)
        except ModelError as error:
            return seal(Failed(reason=str(error)))
        except Exception as error:  # a library's own exception; the process itself is well
            return seal(Failed(reason=f"{type(error).__name__}: {error}"[:1000]))

    def _open(self, order: Open) -> bytes:
        options = SessionOptions(
            threads=order.threads,
            spinning=order.spinning,
            arena=order.arena,
            provider=order.provider,
            provider_options=order.provider_options,
            contexts=order.contexts,
            strict=order.strict,
            cache=order.cache,
            declared=order.declared,
        )
        self._session = session = open_session(Path(order.path), order.runtime, options, order.files)
        return seal(Opened(inputs=session.inputs, outputs=session.outputs, placement=placement(session)))

    def _run(self, order: Run, payload: bytes) -> bytes:
        session = self._session
        if session is None:
            raise ModelError("no model is open")
        arrays = unpack(order.arrays, payload)
        feeds = {head.name: array for head, array in zip(order.arrays, arrays, strict=True)}
        results = session.run(feeds)
        heads, data = pack([tensor.name for tensor in session.outputs], results)
        return seal(Results(arrays=heads), data)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    main()
