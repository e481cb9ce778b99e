"""Requests that nobody should send, for the tests and the fuzzer of the HTTP server."""

from __future__ import annotations

from hypothesis import strategies as st

_LINES = [
    b"Host: a",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Content-Length: 99999999",
    b"content-length: -1",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding : chunked",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Content-Encoding: gzip",
    b"Content-Encoding: deflate",
    b"Accept-Encoding: gzip",
    b"Origin: null",
    b"Inference-Header-Content-Length: 4",
    b" folded",
    b"no colon",
    b"\x00: \x00",
    b"X: " + b"y" * 9000,
]
_FIRST = [
    b"GET / HTTP/1.1",
    b"POST /echo HTTP/1.1",
    b"POST /stream HTTP/1.1",
    b"POST /later HTTP/1.1",
    b"HEAD /json?size=9000 HTTP/1.1",
    b"GET /json?size=9000 HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"GET http://a/b HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"GET /bug HTTP/1.1",
    b"GET /%00%ff HTTP/1.1",
    b"PRI * HTTP/2.0",
]
_BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;ext=\r\nhello\r\n0\r\nT: x\r\n\r\n",
    b"fffffffff\r\n",
    b"\x1f\x8b\x08\x00junk",
    b"x\x9cjunk",
]


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Something like a request: mostly well-formed pieces in combinations that make no sense."""
    breaks = draw(st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"]))
    lines = [draw(st.sampled_from(_FIRST)), *draw(st.lists(st.sampled_from(_LINES), max_size=6))]
    data = bytearray(breaks.join(lines) + breaks * 2 + draw(st.sampled_from(_BODIES)))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
        if not data:
            break
    return bytes(data)


junk = st.one_of(st.binary(max_size=400), requests(), st.lists(requests(), min_size=2, max_size=4).map(b"".join))
"""What a hostile client sends on one connection."""


def check_replies(raw: bytes) -> None:
    """Every reply in `raw` is complete HTTP, and every refusal says why in JSON."""
    import json

    while raw:
        head, separator, raw = raw.partition(b"\r\n\r\n")
        assert separator, head
        status, *lines = head.decode().split("\r\n")
        code = int(status.split(" ")[1])
        if code == 100:
            continue
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        is_next = raw.startswith(b"HTTP/1.1 ") or not raw  # of HEAD there is no body
        body, raw = (b"", raw) if is_next and length else (raw[:length], raw[length:])
        assert code < 500 or code in (500, 501, 503, 505), status
        if code >= 400 and body:
            assert len(body) == length
            assert json.loads(body)["error"]
