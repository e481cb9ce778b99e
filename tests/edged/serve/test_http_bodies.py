"""Chunked framing, decompression and streams, without a connection."""

from __future__ import annotations

import asyncio
import gzip
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.serve.http.bodies import BodyStream, Chunked, Spares, inflate
from edged.serve.http.messages import HttpError


def test_a_buffer_is_given_out_again_when_nobody_looks_at_it() -> None:
    spares = Spares(limit=1 << 20)
    body = bytearray(100_000)
    spares.keep(body)
    number = id(body)
    assert spares.take(100_000) is None, "we hold it"
    view = np.frombuffer(memoryview(body)[4:], np.uint8)
    del body
    assert spares.take(100_000) is None, "the array looks at it"
    del view
    assert spares.take(99_999) is None, "another length"
    again = spares.take(100_000)
    assert again is not None and id(again) == number
    assert spares.take(100_000) is None, "it was given out"


def test_what_is_kept_is_bounded() -> None:
    spares = Spares(limit=300_000)
    for _ in range(5):
        spares.keep(bytearray(100_000))
    spares.keep(bytearray(10))
    spares.keep(bytearray(400_000))
    assert [spares.take(length) is not None for length in (100_000,) * 4 + (10, 400_000)] == [True] * 3 + [False] * 3


def feed(data: bytes, cuts: list[int]) -> tuple[bytes, int, bool]:
    """The body, the bytes used, and whether it is complete."""
    chunked, body, used = Chunked(), bytearray(), 0
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        took = chunked.feed(memoryview(data)[start:stop], body.__iadd__)
        used += took
        if chunked.done:
            break
        assert took == stop - start
    return bytes(body), used, chunked.done


@given(
    st.lists(st.binary(min_size=1, max_size=200), max_size=8),
    st.lists(st.integers(0, 3000), max_size=10),
    st.binary(max_size=10),
    st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n"]),
)
def test_however_it_is_cut_the_body_is_the_same(
    parts: list[bytes], cuts: list[int], behind: bytes, trailer: bytes
) -> None:
    data = b"".join(b"%X\r\n%b\r\n" % (len(part), part) for part in parts) + b"0;last\r\n" + trailer + b"\r\n"
    assert feed(data + behind, cuts) == (b"".join(parts), len(data), True)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1 \r\n",
        b"1_0\r\n",
        b"1\n",
        b"1\rx\r\n",
        b"1;a\rb\r\n",
        b"fffffffffffffffff\r\n",
        b"2\r\nabc\r\n",
        b"2\r\nab\n",
        b"1;" + b"x" * 300,
        b"0\r\n" + b"x" * 300,
        b"0\r\n" + b"a: b\r\n" * 2000,
        b"1\r\na\r\n" * 5000,
    ],
)
def test_broken_framing_is_refused(data: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        feed(data, [])
    assert (caught.value.status, caught.value.close) == (400, True)


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_any_bytes_are_a_body_or_refused(data: bytes, cuts: list[int]) -> None:
    try:
        body, used, _ = feed(data, cuts)
    except HttpError as error:
        assert error.status == 400
    else:
        assert used <= len(data)
        assert len(body) <= len(data)


def test_inflate_stops_at_the_limit() -> None:
    bomb = gzip.compress(bytes(100 << 20), 1)
    with pytest.raises(HttpError) as caught:
        inflate(bomb, "gzip", 1000)
    assert caught.value.status == 413
    assert inflate(gzip.compress(bytes(1000)), "gzip", 1000) == bytes(1000)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_inflate_takes_any_bytes(data: bytes, encoding: str) -> None:
    try:
        assert len(inflate(data, encoding, 1000)) <= 1000
    except HttpError as error:
        assert error.status in (400, 413)


async def test_a_stream_ends_or_fails_after_what_came_before() -> None:
    resumed: list[bool] = []
    stream = BodyStream(lambda: resumed.append(True))
    for _ in range(3):
        stream.feed(memoryview(bytes(100 << 10)))
    assert stream.full
    assert len(await anext(stream)) == 100 << 10
    assert not resumed
    stream.end(ConnectionError("gone"))
    stream.end()
    await anext(stream)
    await anext(stream)
    assert len(resumed) == 1
    with pytest.raises(ConnectionError):
        await anext(stream)
    waiting = BodyStream(lambda: None)
    task = asyncio.ensure_future(anext(waiting, b"end"))
    await asyncio.sleep(0)
    waiting.end()
    assert await task == b"end"
    assert waiting.complete
