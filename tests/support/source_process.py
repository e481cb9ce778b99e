"""The source process as its worker sees it, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edged.capture.camera import source_command
from edged.capture.wire import MAX_FRAME, Frame, FromSource, More, Opened, Start, Trouble
from edgekit.envelope import FrameReader, seal
from edgekit.services import Source

_ROOT = Path(__file__).resolve().parents[2]


class Process:
    """A source process and its worker's end of the channel."""

    def __init__(self, source: Source, environ: Mapping[str, str]) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                source_command(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": str(_ROOT), **environ},
                stderr=subprocess.PIPE,
            )
        self._frames = FrameReader(MAX_FRAME)
        self.channel.sendall(seal(Start(source=source)))
        self._arrived: list[tuple[FromSource, bytes]] = []

    def more(self) -> None:
        self.channel.sendall(seal(More()))

    def next(self, timeout_s: float = 15.0) -> tuple[FromSource, bytes]:
        self.channel.settimeout(timeout_s)
        while not self._arrived:
            data = self.channel.recv(1 << 18)
            assert data, "the process hung up"
            for header, payload in self._frames.feed(data):
                self._arrived.append((msgspec.json.decode(header, type=FromSource), payload))
        return self._arrived.pop(0)

    def opened(self) -> str:
        message, _ = self.next()
        assert isinstance(message, Opened), message
        return message.text

    def frame(self) -> tuple[Frame, bytes]:
        self.more()
        message, payload = self.next()
        assert isinstance(message, Frame), message
        return message, payload

    def trouble(self) -> str:
        self.more()
        message, _ = self.next()
        assert isinstance(message, Trouble), message
        return message.text


@contextmanager
def source(environ: Mapping[str, str] | None = None, **keys: object) -> Iterator[Process]:
    """The process that reads `Source(**keys)`."""
    one = Process(Source(**keys), environ or {})  # type: ignore[arg-type]
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        assert one.process.stderr is not None
        one.process.stderr.close()
        one.channel.close()
