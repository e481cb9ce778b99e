"""What every reader of a camera yields, and how it says that it cannot go on."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from edgekit.services import Source

QUALITY = 90
"""Of the one JPEG encoding that a frame gets which the camera did not send as JPEG."""
OPEN_S = 10.0
"""How long a network camera may take to answer."""
MAX_CREDENTIALS = 1024


class SourceError(Exception):
    """The source cannot be read (any more). The text is a clause for people and names no password."""


class Picture(NamedTuple):
    """One frame. `data` is an encoded picture, or makes one: what nobody wants is never encoded."""

    data: bytes | Callable[[], bytes]
    captured_at: float  # seconds since the epoch
    serial: str = ""


class Reader(Protocol):
    """Opens a source and yields its frames as they come. Raises SourceError.

    `wanted` is asked for each frame, as soon as the frame is there and before anything costly is done with it.
    `opened` is told what the source delivers, once.
    """

    def __call__(
        self, source: Source, wanted: Callable[[], bool], opened: Callable[[str], None]
    ) -> Iterator[Picture]: ...


def read_credentials(path: str) -> tuple[str, str] | None:
    """User and password from the file `path` (one line, USER:PASSWORD); None for no path. Raises SourceError."""
    if not path:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            text = file.read(MAX_CREDENTIALS + 1).decode("utf-8", "replace").strip("\r\n")
    except OSError as error:
        raise SourceError(f"the file {path} with its password cannot be read: {reason(error)}") from None
    user, colon, password = text.partition(":")
    if not colon or not user or len(text) > MAX_CREDENTIALS or not text.isprintable():
        raise SourceError(f"the file {path} does not hold one line USER:PASSWORD")
    return user, password


def reason(error: OSError) -> str:
    """The operating system's words, or the exception's own."""
    if error.errno == errno.EACCES:
        return "permission denied"
    return error.strerror or str(error) or type(error).__name__


def opencv() -> Any:
    """OpenCV, loaded only where it is needed, and after its limits are set."""
    importlib.import_module("edgekit.vision.images")
    return importlib.import_module("cv2")


def encoder(image: Any) -> Callable[[], bytes]:
    """Encodes an HxWx3 uint8 array in BGR order as JPEG, once somebody wants it."""

    def encode() -> bytes:
        from edgekit.vision.images import encode_jpeg

        return encode_jpeg(image, QUALITY, "bgr")

    return encode
