"""Pictures out of a multipart stream, as cameras send them (multipart/x-mixed-replace) and as clients push them.

Sans-IO: bytes in, whole parts out, memory bounded by one part. RFC 2046 as far as cameras keep to it: lines may end
with a bare LF, the boundary may be announced with the two dashes that only belong in front of it, and a part may have
no Content-Length, in which case the next boundary ends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_HEADERS = 8192
"""Bytes of one part's headers, and of what may stand before the first boundary or between a part and the next one."""
_PARAMETER = re.compile(r';\s*boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;,"]{1,200}))', re.IGNORECASE)


class MultipartError(ValueError):
    """The bytes are not the parts they should be; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part: header names in lower case, and the body."""

    headers: dict[str, str]
    body: bytes


def boundary_of(content_type: str) -> str:
    """The boundary that a Content-Type header names. Raises MultipartError if it is no multipart type or names none."""
    if not content_type.strip().lower().startswith("multipart/"):
        shown = content_type.strip()[:60] or "none"
        raise MultipartError(f"the content type is {shown!r}, not multipart/x-mixed-replace")
    found = _PARAMETER.search(content_type)
    if found is None:
        raise MultipartError("the content type names no boundary")
    return found[1] or found[2]


class MultipartReader:
    """Cuts a stream into parts of at most `max_part` bytes. After the closing boundary everything is ignored."""

    def __init__(self, boundary: str, max_part: int) -> None:
        # "--x" announced and "--x" sent (not "----x") is a usual mistake; without its dashes it fits both ways.
        plain = boundary.removeprefix("--") or boundary
        self._delimiter = b"--" + plain.encode("latin-1", "replace")
        dashes = rb"(?:--)?" if plain != boundary else b""
        self._end = re.compile(rb"\r?\n" + dashes + re.escape(self._delimiter))
        self._max_part = max_part
        self._buffer = bytearray()
        self._searched = 0
        self._headers: dict[str, str] | None = None  # of the part whose body is being read
        self.ended = False

    def feed(self, data: bytes) -> Iterator[Part]:
        """Take what arrived; yield every part that is complete now. Raises MultipartError."""
        if not self.ended:
            self._buffer += data
        while not self.ended:
            if self._headers is None:
                if not self._begin():
                    return
            else:
                body = self._body(self._headers)
                if body is None:
                    return
                part = Part(self._headers, body)
                self._headers = None
                yield part

    def _begin(self) -> bool:
        """Find the next boundary and read the headers behind it; False if more bytes are needed."""
        buffer = self._buffer
        start = buffer.find(self._delimiter)
        if start < 0:
            if len(buffer) > MAX_HEADERS + len(self._delimiter):
                raise MultipartError(f"there is no boundary within {MAX_HEADERS} bytes")
            return False
        after = start + len(self._delimiter)
        if buffer[after : after + 2] == b"--":
            self.ended = True
            buffer.clear()
            return False
        found = re.compile(rb"\r?\n\r?\n").search(buffer, after)
        if found is None or found.end() - after > MAX_HEADERS:
            if len(buffer) - after > MAX_HEADERS:
                raise MultipartError(f"the headers of a part exceed {MAX_HEADERS} bytes")
            return False
        self._headers = _parse(bytes(buffer[after : found.start()]))
        del buffer[: found.end()]
        self._searched = 0
        return True

    def _body(self, headers: dict[str, str]) -> bytes | None:
        """The body if it is complete, None if more bytes are needed."""
        length = _length(headers)
        buffer = self._buffer
        if length is not None:
            if length > self._max_part:
                raise self._too_large()
            if len(buffer) < length:
                return None
            body = bytes(buffer[:length])
            del buffer[:length]
            return body
        end = self._end.search(buffer, self._searched)
        size = len(buffer) - len(self._delimiter) - 4 if end is None else end.start()
        if size > self._max_part:
            raise self._too_large()
        if end is None:
            self._searched = max(0, size)
            return None
        body = bytes(buffer[:size])
        del end, buffer[:size]
        return body

    def _too_large(self) -> MultipartError:
        return MultipartError(f"a part exceeds {self._max_part} bytes")


def _parse(block: bytes) -> dict[str, str]:
    """The header lines between a boundary and the empty line."""
    headers = {}
    for line in block.decode("latin-1").split("\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers


def _length(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise MultipartError("a part has a Content-Length that is no number")
    return int(text)
