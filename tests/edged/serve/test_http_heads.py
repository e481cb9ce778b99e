"""Request heads: what is understood, and everything that two readers could understand differently is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.serve.http.heads import parse_head
from edged.serve.http.messages import HttpError, Request, Response
from edged.serve.http.replies import head

HOSTILE = {
    "two equal lengths": (400, b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n"),
    "two lengths": (400, b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"),
    "list of lengths": (400, b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n"),
    "length and chunks": (400, b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "chunks and length": (400, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"),
    "chunked twice": (400, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "hidden chunked": (None, b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n"),
    "chunked not last": (None, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"),
    "gzip transfer": (None, b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    "empty transfer encoding": (None, b"POST / HTTP/1.1\r\nTransfer-Encoding:\r\n\r\n"),
    "chunks in 1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "space before colon": (400, b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n"),
    "tab before colon": (400, b"POST / HTTP/1.1\r\nTransfer-Encoding\t: chunked\r\n\r\n"),
    "negative length": (400, b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n"),
    "signed length": (400, b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n"),
    "hexadecimal length": (400, b"POST / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n"),
    "empty length": (400, b"POST / HTTP/1.1\r\nContent-Length: \r\n\r\n"),
    "length of other digits": (400, "POST / HTTP/1.1\r\nContent-Length: ٥\r\n\r\n".encode()),
    "endless length": (400, b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "folded line": (400, b"GET / HTTP/1.1\r\nX-A: b\r\n c: d\r\n\r\n"),
    "folded first line": (400, b"GET / HTTP/1.1\r\n Content-Length: 5\r\n\r\n"),
    "bare line feeds": (400, b"GET / HTTP/1.1\nHost: a\nContent-Length: 5\r\n\r\n"),
    "request in bare line feeds": (400, b"GET / HTTP/1.1\n\nGET /b HTTP/1.1\r\n\r\n"),
    "bare carriage return": (400, b"GET / HTTP/1.1\r\nX: a\rContent-Length: 5\r\n\r\n"),
    "NUL in a value": (400, b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n"),
    "NUL in a name": (400, b"GET / HTTP/1.1\r\nX\x00: b\r\n\r\n"),
    "NUL in the target": (400, b"GET /\x00 HTTP/1.1\r\n\r\n"),
    "NUL behind percent": (400, b"GET /a%00b HTTP/1.1\r\n\r\n"),
    "line break behind percent": (400, b"GET /a%0d%0ab HTTP/1.1\r\n\r\n"),
    "bytes in the target": (400, b"GET /\xff\xfe HTTP/1.1\r\n\r\n"),
    "no UTF-8 behind percent": (400, b"GET /%ff HTTP/1.1\r\n\r\n"),
    "no colon": (400, b"GET / HTTP/1.1\r\nhello\r\n\r\n"),
    "no name": (400, b"GET / HTTP/1.1\r\n: hello\r\n\r\n"),
    "no version": (None, b"GET /\r\n\r\n"),
    "old version": (None, b"GET / HTTP/0.9\r\n\r\n"),
    "next version": (None, b"GET / HTTP/2.0\r\n\r\n"),
    "version of no time": (None, b"GET / HTTP/9.9\r\n\r\n"),
    "start of HTTP/2": (None, b"PRI * HTTP/2.0\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "another protocol": (None, b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    "a reply": (None, b"HTTP/1.1 200 OK\r\n\r\n"),
    "tunnel": (None, b"CONNECT a:1 HTTP/1.1\r\n\r\n"),
    "unknown method": (None, b"BREW / HTTP/1.1\r\n\r\n"),
    "known, of no use here": (501, b"PROPFIND / HTTP/1.1\r\n\r\n"),
    "lower-case method": (None, b"get / HTTP/1.1\r\n\r\n"),
    "target that is no path": (None, b"GET x HTTP/1.1\r\n\r\n"),
    "target of another scheme": (None, b"GET ftp://a/b HTTP/1.1\r\n\r\n"),
    "two spaces": (None, b"GET  / HTTP/1.1 \r\n\r\n"),
    "space in the target": (400, b"GET /a b HTTP/1.1\r\n\r\n"),
    "other expectation": (417, b"POST / HTTP/1.1\r\nExpect: a-miracle\r\n\r\n"),
    "unknown compression": (501, b"POST / HTTP/1.1\r\nContent-Encoding: br\r\n\r\n"),
    "many headers": (431, b"GET / HTTP/1.1\r\n" + b"".join(b"x%d: y\r\n" % n for n in range(101)) + b"\r\n"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_heads_are_refused_with_a_fitting_status(case: str) -> None:
    status, data = HOSTILE[case]
    with pytest.raises(HttpError) as caught:
        parse_head(data)
    assert caught.value.text
    assert caught.value.status == status or (status is None and caught.value.status in (400, 501, 505))


def test_what_is_understood() -> None:
    request = parse_head(b"POST /a%20b?c=%20#d HTTP/1.1\r\nCONTENT-length: 12\r\nX-y:  z \t\r\n\r\n", received=3.5)
    assert (request.method, request.path, request.query_string, request.length) == ("POST", "/a b", "c=%20", 12)
    assert request.headers == {"content-length": "12", "x-y": "z"}
    assert (request.received, request.keep_alive, request.old, request.chunked) == (3.5, True, False, False)
    assert parse_head(b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n").chunked


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_refusal(data: bytes) -> None:
    for prefix in (b"", b"GET /", b"POST / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX: "):
        try:
            request = parse_head(prefix + data + b"\r\n\r\n")
        except HttpError as error:
            assert 400 <= error.status < 600
        else:
            assert request.path.startswith("/") or request.path == "*"
            assert "\x00" not in request.path


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_reply_header_breaks_a_reply_apart(name: str, value: str) -> None:
    try:
        raw = head(None, Response(200, headers={name: value}), 0, close=False)
    except ValueError:
        return
    assert raw.count(b"\r\n") == 4
    assert raw.endswith(b"\r\n\r\n")


def test_known_spellings_do_not_change_the_outcome() -> None:
    for name in ("content-type", "Content-Type", "CONTENT-TYPE", "cOnTeNt-TyPe"):
        request: Request = parse_head(f"GET / HTTP/1.1\r\n{name}: image/png\r\n\r\n".encode())
        assert request.content_type == "image/png"
