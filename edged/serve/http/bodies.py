"""Bodies: chunked framing, decompression with a bound, and the stream that a handler reads while it arrives."""

from __future__ import annotations

import asyncio
import string
import sys
import zlib
from collections import deque
from collections.abc import Callable

from edged.serve.http.messages import Buffer, HttpError

_MAX_LINE = 256
"""Bytes of a chunk's size line with its extensions."""
_MAX_TRAILER = 8 << 10
_FREE_CHUNKS = 1024
_MEAN_CHUNK = 64
"""Chunks beyond the free ones must have this many bytes on average: each costs us more than it costs the sender."""
_HEX = frozenset(string.hexdigits.encode())
_WORTH_KEEPING = 64 << 10
_KEPT = 10 << 20  # the tensors of sixteen clients with pictures of 224 x 224
_NOBODY_ELSE = 2  # references to a buffer that only our list and the asking itself know


class Spares:
    """Buffers of bodies that are over, for the next body of the same length.

    A steady client sends bodies of one length, and fresh memory for each costs as much as receiving it: the kernel
    clears every page. Whoever still looks at a body, also through a memoryview or an array, holds a reference to it;
    such a buffer is not given out.
    """

    def __init__(self, limit: int = _KEPT) -> None:
        """`limit`: bytes of all buffers that are known here, in use or not."""
        self._limit = limit
        self._known: deque[bytearray] = deque()
        self._bytes = 0

    def take(self, length: int) -> bytearray | None:
        """A buffer of this length with whatever it held before, or None. It is not known here any more."""
        for at in range(len(self._known)):
            if len(self._known[at]) == length and sys.getrefcount(self._known[at]) == _NOBODY_ELSE:
                body = self._known[at]
                del self._known[at]
                self._bytes -= length
                return body
        return None

    def keep(self, body: bytearray) -> None:
        """Remember the buffer of a body that has come; it may be in use for long."""
        if not _WORTH_KEEPING <= len(body) <= self._limit:
            return
        self._known.append(body)
        self._bytes += len(body)
        while self._bytes > self._limit:
            self._bytes -= len(self._known.popleft())


class Chunked:
    """The framing of a chunked body. Feed it what arrives until it is `done`."""

    __slots__ = ("_chunks", "_left", "_line", "_total", "_trailer", "_where", "done")

    def __init__(self) -> None:
        self.done = False
        self._where = "size"  # size, data, end (the line break behind the data), trailer
        self._line = bytearray()
        self._left = 0
        self._total = 0
        self._chunks = 0
        self._trailer = 0

    def feed(self, data: memoryview, take: Callable[[memoryview], None]) -> int:
        """Hand the body's bytes in `data` to `take`; how many bytes of `data` belong to this body.

        Raises HttpError 400 for broken framing.
        """
        at = 0
        while at < len(data) and not self.done:
            if self._where == "data":
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                take(part)
                if not self._left:
                    self._where = "end"
                continue
            at = self._read_line(data, at)
            if self._line.endswith(b"\n"):
                line = bytes(self._line)
                self._line.clear()
                if not line.endswith(b"\r\n"):
                    raise _broken("a line does not end with CR LF")
                self._act(line[:-2])
        return at

    def _read_line(self, data: memoryview, at: int) -> int:
        """Add to the current line up to its end; the new position."""
        piece = bytes(data[at : at + _MAX_LINE])
        cut = piece.find(b"\n") + 1
        self._line += piece[:cut] if cut else piece
        if len(self._line) > _MAX_LINE:
            raise _broken("a line is too long")
        return at + (cut or len(piece))

    def _act(self, line: bytes) -> None:
        if self._where == "size":
            digits = line.partition(b";")[0]
            if not 0 < len(digits) <= 15 or not _HEX.issuperset(digits) or b"\r" in line:
                raise _broken("the size of a chunk is no hexadecimal number")
            self._left = int(digits, 16)
            self._total += self._left
            self._chunks += 1
            if self._chunks > _FREE_CHUNKS + self._total // _MEAN_CHUNK:
                raise _broken("its chunks are too small")
            self._where = "data" if self._left else "trailer"
        elif self._where == "end":
            if line:
                raise _broken("a chunk is longer than it says")
            self._where = "size"
        elif not line:
            self.done = True
        else:  # trailers are read over: nothing here needs one
            self._trailer += len(line) + 2
            if self._trailer > _MAX_TRAILER:
                raise _broken("its trailer is too long")


def inflate(body: Buffer, encoding: str, limit: int) -> bytes:
    """The decompressed body (`gzip` or `deflate`). Raises HttpError 400, or 413 beyond `limit` bytes. Takes long."""
    if encoding == "gzip":
        bits = 16 + zlib.MAX_WBITS
    else:  # zlib's format is what the name means; some clients send the bare stream
        bits = zlib.MAX_WBITS if body[:1] and body[0] & 0x0F == 8 else -zlib.MAX_WBITS
    decompressor = zlib.decompressobj(bits)
    try:
        plain = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise HttpError(400, f"the request body cannot be read: {error}") from None
    if len(plain) > limit:
        raise HttpError(413, f"the request body exceeds {limit} bytes")
    if not decompressor.eof or decompressor.unused_data:
        raise HttpError(400, f"the request body cannot be read: it is no complete {encoding} stream")
    return plain


class BodyStream:
    """The chunks of a body while it arrives: an asynchronous iterator for one reader.

    Raises HttpError 400 for broken framing, 408 if the client falls silent, ConnectionError if it hangs up.
    """

    HIGH, LOW = 256 << 10, 64 << 10
    """Bytes waiting for the reader at which the client is told to wait, and to go on."""

    def __init__(self, resume: Callable[[], None]) -> None:
        """`resume` is called when the reader has caught up."""
        self._resume = resume
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self.ended = False

    def __aiter__(self) -> BodyStream:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunk = self._chunks.popleft()
        before, self._size = self._size, self._size - len(chunk)
        if self._size <= self.LOW < before:
            self._resume()
        return chunk

    def feed(self, part: memoryview) -> None:
        """More of the body. For the connection."""
        self._chunks.append(bytes(part))
        self._size += len(part)
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """The body is complete, or there will be no more of it. For the connection."""
        if not self.ended:
            self.ended, self._error = True, error
            self._wake()

    @property
    def complete(self) -> bool:
        """True when the whole body has come, read or not."""
        return self.ended and self._error is None

    @property
    def full(self) -> bool:
        """True while the client should wait."""
        return self._size > self.HIGH

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _broken(what: str) -> HttpError:
    return HttpError(400, f"the request body cannot be read: {what}", close=True)
