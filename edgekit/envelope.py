"""One frame for everything that is a small message with bytes behind it.

    u32 (big endian) header length | u32 payload length | header (JSON) | payload

The same frame carries a hard sample to cloudd (as an HTTP body) and every message between a supervisor and its worker
(as a stream of frames). The codec is sans-IO: bytes in, frames out. It never allocates more than the caller's limits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

_PREFIX = struct.Struct(">II")
MAX_HEADER = 1 << 20
"""Bytes. The largest header is a worker's configuration with all its services; 1 MiB is 100 times that."""


class EnvelopeError(ValueError):
    """The bytes are not a frame, or are larger than the receiver allows."""


def seal(header: msgspec.Struct, payload: bytes | memoryview = b"") -> bytes:
    """Frame one message. Raises EnvelopeError if the encoded header exceeds MAX_HEADER."""
    head = msgspec.json.encode(header)
    if len(head) > MAX_HEADER:
        raise EnvelopeError(f"the header has {len(head)} bytes; {MAX_HEADER} are allowed")
    return b"".join((_PREFIX.pack(len(head), len(payload)), head, payload))


def unseal(data: bytes | memoryview) -> tuple[bytes, bytes]:
    """Split exactly one frame into (header JSON, payload). Raises EnvelopeError on anything else."""
    if len(data) < _PREFIX.size:
        raise EnvelopeError(f"{len(data)} bytes are too few for a frame")
    head_length, payload_length = _PREFIX.unpack_from(data)
    if head_length > MAX_HEADER:
        raise EnvelopeError(f"the frame announces a header of {head_length} bytes; {MAX_HEADER} are allowed")
    if len(data) != _PREFIX.size + head_length + payload_length:
        raise EnvelopeError(
            f"the frame announces {head_length} + {payload_length} bytes but carries {len(data) - _PREFIX.size}"
        )
    view = memoryview(data)[_PREFIX.size :]
    return bytes(view[:head_length]), bytes(view[head_length:])


class FrameReader:
    """Collects a byte stream and yields whole frames as (header JSON, payload)."""

    def __init__(self, max_payload: int) -> None:
        self._buffer = bytearray()
        self._max_payload = max_payload

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Take what arrived; yield every frame that is now complete. Raises EnvelopeError on an oversized frame."""
        self._buffer += data
        while len(self._buffer) >= _PREFIX.size:
            head_length, payload_length = _PREFIX.unpack_from(self._buffer)
            if head_length > MAX_HEADER or payload_length > self._max_payload:
                raise EnvelopeError(
                    f"a frame of {head_length} + {payload_length} bytes exceeds {MAX_HEADER} + {self._max_payload}"
                )
            end = _PREFIX.size + head_length + payload_length
            if len(self._buffer) < end:
                return
            header = bytes(self._buffer[_PREFIX.size : _PREFIX.size + head_length])
            payload = bytes(self._buffer[_PREFIX.size + head_length : end])
            del self._buffer[:end]
            yield header, payload
