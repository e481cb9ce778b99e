"""A network camera over RTSP, decoded by FFmpeg inside OpenCV; MJPEG is passed on undecoded."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote, urlsplit, urlunsplit

from edged.capture.cameras.base import OPEN_S, Picture, SourceError, read_credentials, reason
from edged.capture.cameras.holes import Whole, listen
from edged.capture.cameras.video import Video
from edgekit.services import Source

_TCP = 'source.transport = "tcp" loses none'


def read(source: Source, wanted: Callable[[], bool], opened: Callable[[str], None]) -> Iterator[Picture]:
    """Frames of `source.url`; see Reader."""
    _reach(source.url)
    video = Video(_address(source), _options(source))
    width, height = video.size
    opened(f"{video.codec or 'video'} {width}x{height} over RTSP ({source.transport})")
    whole = _always if source.transport == "tcp" or video.raw else _judge(video, source.silent_s)
    while video.grab():
        now = time.time()
        if whole() and wanted() and (data := video.take()) is not None:
            yield Picture(data, now)
    raise SourceError("it ended its stream, or the connection broke")


def _always() -> bool:
    """TCP loses nothing, and of JPEGs FFmpeg leaves the damaged ones out by itself."""
    return True


def _judge(video: Video, silent_s: float) -> Callable[[], bool]:
    """Tells whether the grabbed frame is whole. Raises SourceError if none has been for almost `silent_s`."""
    try:
        holes = listen()
    except OSError as error:
        raise SourceError(f"pictures with lost packets could not be told from whole ones: {error}; {_TCP}") from None
    frames, patience = Whole(), 0.8 * silent_s or OPEN_S
    last = time.monotonic()

    def whole() -> bool:
        nonlocal last
        now = time.monotonic()
        if frames.look(holes(), video.stands_alone):
            last = now
            return True
        if now - last > patience:
            raise SourceError(f"so many packets get lost that no picture was whole for {patience:.3g} s; {_TCP}")
        return False

    return whole


def _reach(url: str) -> None:
    """Say why nobody answers there, which FFmpeg keeps to itself."""
    parts = urlsplit(url)
    port = parts.port or {"rtsp": 554, "rtsps": 322}[parts.scheme]
    try:
        socket.create_connection((parts.hostname or "", port), OPEN_S).close()
    except OSError as error:
        raise SourceError(reason(error)) from None


def _address(source: Source) -> str:
    """The URL with user and password in it, which is how FFmpeg wants them. It never leaves this process."""
    credentials = read_credentials(source.credentials)
    if credentials is None:
        return source.url
    parts = urlsplit(source.url)
    user = ":".join(quote(part, safe="") for part in credentials)
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc}"))


def _options(source: Source) -> str:
    """FFmpeg's: the transport, a limit for each read, and no protocol but those that RTSP needs."""
    options = {
        "rtsp_transport": source.transport,
        "timeout": str(int(OPEN_S * 1e6)),
        "fflags": "nobuffer",
        "allowed_media_types": "video",
        "protocol_whitelist": "rtsp,rtsps,rtp,rtcp,udp,tcp,tls,crypto",
    }
    return "|".join(f"{key};{value}" for key, value in options.items())
