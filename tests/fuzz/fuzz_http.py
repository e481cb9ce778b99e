"""Coverage-guided fuzzing of request heads and bodies: `python -m tests.fuzz.fuzz_http [-runs=N] [CORPUS_DIR]`.

Needs atheris, which is built for few versions of Python. Without it, the same target runs on made-up input in
test_fuzz_http.py.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from edged.serve.http.bodies import Chunked, inflate
from edged.serve.http.heads import parse_head
from edged.serve.http.messages import HttpError

LIMIT = 1 << 20


def one_input(data: bytes) -> None:
    """Whatever `data` is, it is read or refused; anything but HttpError is a bug."""
    with contextlib.suppress(HttpError):
        request = parse_head(data + b"\r\n\r\n")
        assert request.path.startswith("/") or request.path == "*"
        assert request.length >= 0 and not (request.chunked and request.length)
        _ = request.query, request.content_type
    with contextlib.suppress(HttpError):
        body = bytearray()
        used = Chunked().feed(memoryview(data), body.__iadd__)
        assert len(body) <= used <= len(data)
    for encoding in ("gzip", "deflate"):
        with contextlib.suppress(HttpError):
            assert len(inflate(data, encoding, LIMIT)) <= LIMIT


def main() -> None:
    """Run until a bug is found or `-runs` is reached."""
    import atheris  # type: ignore[import-not-found] # not a dependency

    fuzzer: Any = atheris
    fuzzer.instrument_all()
    fuzzer.Setup(sys.argv, one_input)
    fuzzer.Fuzz()


if __name__ == "__main__":
    main()
