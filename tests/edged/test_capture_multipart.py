"""Multipart streams: whatever the pieces, the same parts; whatever the bytes, bounded memory and one kind of error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.capture.multipart import MAX_HEADERS, MultipartError, MultipartReader, Part, boundary_of

MAX = 4096
bodies = st.lists(st.binary(min_size=1, max_size=300).filter(lambda data: b"\n--b" not in data), max_size=6)


def encode(
    bodies: list[bytes], lengths: bool, newline: bytes = b"\r\n", dashes: bytes = b"--", end: bool = True
) -> bytes:
    out = b""
    for body in bodies:
        head = [dashes + b"b", b"Content-Type: image/jpeg"]
        head += [b"Content-Length: %d" % len(body)] if lengths else []
        out += newline.join(head) + newline * 2 + body + newline
    return out + (dashes + b"b--" + newline if end else b"")


def read(data: bytes, cuts: list[int], boundary: str = "b") -> tuple[list[Part], MultipartReader]:
    reader, parts, at = MultipartReader(boundary, MAX), [], 0
    for cut in sorted({*cuts, len(data)}):
        parts += reader.feed(data[at:cut])
        at = max(at, cut)
    return parts, reader


@settings(deadline=None)
@given(bodies, st.booleans(), st.sampled_from([b"\r\n", b"\n"]), st.lists(st.integers(0, 2000), max_size=20))
def test_the_same_parts_however_they_are_cut(
    bodies: list[bytes], lengths: bool, newline: bytes, cuts: list[int]
) -> None:
    if not lengths and newline == b"\n":
        bodies = [body for body in bodies if not body.endswith(b"\r")]  # would belong to the line end
    parts, reader = read(encode(bodies, lengths, newline), cuts)
    assert [part.body for part in parts] == bodies
    assert reader.ended
    assert all(part.headers["content-type"] == "image/jpeg" for part in parts)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=3000), max_size=20))
def test_hostile_bytes_end_in_parts_or_in_one_error(pieces: list[bytes]) -> None:
    reader = MultipartReader("b", MAX)
    try:
        for piece in pieces:
            for part in reader.feed(piece):
                assert len(part.body) <= MAX
            assert len(reader._buffer) <= MAX + MAX_HEADERS + 3000 + 64
    except MultipartError as error:
        assert str(error)


@pytest.mark.parametrize("lengths", [True, False])
def test_dashes_in_the_announced_boundary(lengths: bool) -> None:
    """boundary=--b with --b in the body, and with ----b."""
    for dashes in (b"--", b"----"):
        parts, _ = read(encode([b"one", b"two"], lengths, dashes=dashes), [], "--b")
        assert [part.body for part in parts] == [b"one", b"two"]


def test_a_boundary_inside_a_body_with_a_length() -> None:
    body = b"x\r\n--b\r\n\r\nno part"
    parts, _ = read(encode([body, b"next"], True), [])
    assert [part.body for part in parts] == [body, b"next"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"x" * 10_000, "no boundary"),
        (b"--b\r\n" + b"a: b\r\n" * 3000, "headers of a part exceed"),
        (b"--b\r\nContent-Length: -1\r\n\r\n", "no number"),
        (b"--b\r\nContent-Length: 5000\r\n\r\n", "exceeds 4096"),
        (b"--b\r\n\r\n" + b"x" * 6000, "exceeds 4096"),
    ],
)
def test_errors_say_what_is_wrong(data: bytes, said: str) -> None:
    with pytest.raises(MultipartError, match=said):
        read(data, list(range(0, len(data), 100)))


def test_nothing_follows_the_end() -> None:
    parts, reader = read(encode([b"one"], True) + encode([b"two"], True), [])
    assert [part.body for part in parts] == [b"one"]
    assert list(reader.feed(b"more" * 10_000)) == []


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ("multipart/x-mixed-replace; boundary=frame", "frame"),
        ('multipart/x-mixed-replace;boundary="--my frame"', "--my frame"),
        ("Multipart/Mixed; charset=x; BOUNDARY = b ", "b"),
    ],
)
def test_the_boundary_of_a_header(header: str, boundary: str) -> None:
    assert boundary_of(header) == boundary


@pytest.mark.parametrize(
    "header", ["", "image/jpeg", "multipart/mixed", "multipart/mixed; boundary=", "text/multipart/"]
)
def test_headers_without_one(header: str) -> None:
    with pytest.raises(MultipartError):
        boundary_of(header)
