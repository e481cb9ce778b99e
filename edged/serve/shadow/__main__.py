"""`python -m edged.serve.shadow --fd N`: a candidate's process. It gives way to everybody. Started by a worker only."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Iterator

import msgspec

from edged.serve.parent import die_with_parent
from edged.serve.shadow.bounds import await_memory, limit_memory, need, yield_to_others
from edged.serve.shadow.wire import MAX_PICTURE, FromShadow, Loaded, Order, Refused, ToShadow
from edgekit.envelope import FrameReader, seal

_READ = 1 << 20


def main() -> int:
    """Bound the process, load the candidate, then answer frames until the worker closes its end; the exit status."""
    parser = argparse.ArgumentParser(prog="edged.serve.shadow", description="A candidate of edged; not for people.")
    parser.add_argument("--fd", type=int, required=True)
    connection = socket.socket(fileno=parser.parse_args().fd)
    die_with_parent()
    yield_to_others()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    frames = _frames(connection)
    first = next(frames, None)
    if first is None:
        return 0
    order = msgspec.json.decode(first[0], type=Order)
    most, problem = await_memory(need(order.candidate, order.directory))
    if problem:
        _say(connection, Refused(reason=problem))
        return 0
    limit_memory(most)
    # Only now: what follows is what the bounds are for.
    from edged.serve.shadow.looking import Looker, Unusable

    try:
        looker = Looker(order)
    except Unusable as error:
        _say(connection, Refused(reason=str(error)[:1000]))
        return 0
    _say(connection, Loaded())
    decoder: msgspec.json.Decoder[ToShadow] = msgspec.json.Decoder(ToShadow)
    for header, picture in frames:
        _say(connection, looker.take(decoder.decode(header), picture))
    return 0


def _frames(connection: socket.socket) -> Iterator[tuple[bytes, bytes]]:
    """Every frame until the other end is closed."""
    reader = FrameReader(MAX_PICTURE)
    while data := connection.recv(_READ):
        yield from reader.feed(data)


def _say(connection: socket.socket, message: FromShadow) -> None:
    connection.sendall(seal(message))


if __name__ == "__main__":
    try:
        status = main()
    except (ConnectionError, BrokenPipeError):  # the worker does not want to know any more
        status = 0
    except Exception:
        logging.getLogger("edged.serve").exception("a candidate's process failed")
        status = 1
    logging.shutdown()
    os._exit(status)  # a runtime's teardown must not keep it alive
