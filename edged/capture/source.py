"""The source process: reads one camera or recording, for one worker. `python -m edged.capture.source --fd N`.

Whatever a camera sends is parsed here, far from models, keys and other services. A crash, a hang or a hostile stream
costs this process only; the worker notices and starts another one. It keeps no state, so it may be killed at any time.
Every fault ends the process with one sentence: connecting again is starting again.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from typing import Any

import msgspec

from edged.capture.cameras.base import Picture, Reader, SourceError
from edged.capture.pace import FrameClock
from edged.capture.wire import MAX_FRAME, Ended, Frame, Opened, Start, ToSource, Trouble
from edgekit.envelope import EnvelopeError, FrameReader, seal
from edgekit.services import Source
from edgekit.vision.sniff import ImageError

MEMORY = 1 << 30
"""Bytes that the process may write to: decoding 4K video takes a third of it."""
FILES = 256
LAST_WORD_S = 5.0
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38

log = logging.getLogger("edged.capture.source")

_decoder: msgspec.json.Decoder[ToSource] = msgspec.json.Decoder(ToSource)


class Outlet:
    """The newest frame, until the worker asks for one. Used by the reading thread and the sending one."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._newest: Picture | None = None
        self._skipped = 0
        self._sends = False

    def put(self, picture: Picture) -> None:
        """A new frame; one that still waits is given up."""
        with self._changed:
            self._skipped += self._newest is not None
            self._newest = picture
            self._changed.notify()

    def finish(self) -> None:
        """No more frames come. Waits until the last one was asked for and sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is None and not self._sends)

    def tell(self, message: Opened | Trouble | Ended) -> None:
        """Send a message without a picture."""
        with self._sending:
            self._channel.sendall(seal(message))

    def serve(self, frames: FrameReader) -> None:
        """Send one frame for each More, until the worker hangs up."""
        data = b""  # the first More may have come together with Start
        while True:
            for header, _ in frames.feed(data):
                _decoder.decode(header)
                self._send_one()
            data = self._channel.recv(65_536)
            if not data:
                return

    def _send_one(self) -> None:
        """Wait for a frame and send it. One that cannot be encoded counts as skipped."""
        skipped, data, picture = 0, None, Picture(b"", 0.0)
        while data is None:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None)
                assert self._newest is not None
                picture = self._newest
                skipped += self._skipped
                self._newest, self._skipped, self._sends = None, 0, True
            data = _encoded(picture)
            if data is None:
                skipped += 1
                self._sent()
        with self._sending:
            self._channel.sendall(
                seal(Frame(captured_at=picture.captured_at, serial=picture.serial, skipped=skipped), data)
            )
        self._sent()

    def _sent(self) -> None:
        with self._changed:
            self._sends = False
            self._changed.notify_all()


def _encoded(picture: Picture) -> bytes | None:
    try:
        data = picture.data if isinstance(picture.data, bytes) else picture.data()
    except ImageError:
        return None
    return data if len(data) <= MAX_FRAME else None


def reader_of(source: Source) -> Reader:
    """Only the module that this kind of source needs is loaded."""
    reader: Reader = importlib.import_module(f"edged.capture.cameras.{source.kind}").read
    return reader


def run(channel: socket.socket) -> None:
    """Serve one source over the channel until it ends or the worker hangs up."""
    frames = FrameReader(max_payload=0)
    start = _first(channel, frames)
    if start is None:
        return
    source = start.source
    outlet = Outlet(channel)
    serving = threading.Thread(target=_serve, args=(outlet, frames), name="sending", daemon=True)
    serving.start()
    clock = FrameClock(source.fps)
    try:
        for picture in reader_of(source)(
            source, lambda: clock.due(time.monotonic()), lambda text: outlet.tell(Opened(text=text))
        ):
            outlet.put(picture)
        outlet.finish()
        outlet.tell(Ended())
    except SourceError as error:
        outlet.tell(Trouble(text=str(error)))
    except MemoryError:
        outlet.tell(Trouble(text=f"its pictures need more than {MEMORY >> 20} MiB"))
    serving.join(LAST_WORD_S)  # the worker ends us once it has read that; a socket closed now could swallow it


def _first(channel: socket.socket, frames: FrameReader) -> Start | None:
    while data := channel.recv(65_536):
        for header, _ in frames.feed(data):
            message = _decoder.decode(header)
            if not isinstance(message, Start):
                raise EnvelopeError("the first message must say which source to read")
            return message
    return None


def _serve(outlet: Outlet, frames: FrameReader) -> None:
    """The sending thread. Without a worker, or after a fault, there is nothing left to do."""
    try:
        outlet.serve(frames)
        status = 0
    except ConnectionError:
        status = 0
    except Exception:
        log.exception("the source process failed")
        status = 1
    os._exit(status)


def confine() -> None:
    """Die with the worker; bound memory and files; write no core dump, which would hold pictures; gain no rights."""
    prctl: Any = ctypes.CDLL(None, use_errno=True).prctl
    for option, argument in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if prctl(option, argument, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl failed")
    limits = ((resource.RLIMIT_DATA, MEMORY), (resource.RLIMIT_NOFILE, FILES), (resource.RLIMIT_CORE, 0))
    for which, limit in limits:
        _, hard = resource.getrlimit(which)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(which, (limit, limit))


def main() -> int:
    """Confine the process, then serve; the exit status."""
    parser = argparse.ArgumentParser(prog="edged.capture.source", description="Reads a camera; not for people.")
    parser.add_argument("--fd", type=int, required=True)
    arguments = parser.parse_args()
    confine()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's business
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    channel = socket.socket(fileno=arguments.fd)
    channel.set_inheritable(False)
    try:
        run(channel)
    except ConnectionError:  # the worker is gone
        return 0
    except Exception:
        log.exception("the source process failed")
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main())  # a decoder's threads must not keep it alive
