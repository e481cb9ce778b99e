"""The newest decided picture of a service, with its decision drawn on it, for people who look at the status page.

Nothing is drawn before somebody asks, and then once a picture, in one thread for all services: a look at a line must
not slow it down.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekit.messages import Decision
from edgekit.vision.images import decode, encode_jpeg

SIDE = 640
"""Pixels of the longer side at most, without the line of text below."""
MAX_KEPT = 4 << 20
"""Bytes. A larger encoded picture is not kept, so that many services cannot hold much memory for nobody's eyes."""
MAX_TEXT = 120
_BORDER = 6
_LINE = 28
_SMALLEST = 320
# BGR, the page's own colours: white letters are readable on each. The verdict stands there as a word, too.
_COLOURS = {"pass": (75, 127, 26), "fail": (30, 38, 179), "review": (0, 91, 154), "": (168, 99, 37)}

_drawing = ThreadPoolExecutor(1, thread_name_prefix="preview")


class Preview:
    """Keeps one picture and its decision. Use it on the event loop."""

    def __init__(self) -> None:
        self._newest: tuple[bytes, Decision] | None = None
        self._drawn: tuple[str, bytes] = ("", b"")

    def keep(self, picture: bytes | bytearray, decision: Decision) -> None:
        """Remember what was decided; the picture is not copied unless it could change."""
        self._newest = (bytes(picture), decision) if len(picture) <= MAX_KEPT else None

    @property
    def text(self) -> str:
        """What the picture shows, in words; "" while there is none."""
        return _words(self._newest[1]) if self._newest is not None else ""

    async def jpeg(self) -> bytes | None:
        """The picture as it may be shown, None while there is none. Raises ImageError if it cannot be drawn."""
        if self._newest is None:
            return None
        picture, decision = self._newest
        if self._drawn[0] != decision.sample_id:
            loop = asyncio.get_running_loop()
            self._drawn = (decision.sample_id, await loop.run_in_executor(_drawing, draw, picture, decision))
        return self._drawn[1]


def _words(decision: Decision) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(decision.captured_at))
    verdict = f"{decision.verdict}: " if decision.verdict else ""
    return f"{verdict}{decision.label[:MAX_TEXT]} {decision.score:.1%}, {at}, {decision.decided}"


def draw(picture: bytes, decision: Decision) -> bytes:
    """A JPEG of at most SIDE pixels a side: the picture in a frame of the verdict's colour, the decision below."""
    image = _fitted(decode(picture, "bgr", reduce_to=(SIDE, SIDE)))
    colour = _COLOURS[decision.verdict]
    height, width = image.shape[:2]
    canvas = np.full((height + 2 * _BORDER + _LINE, width + 2 * _BORDER, 3), colour, np.uint8)
    canvas[_BORDER : _BORDER + height, _BORDER : _BORDER + width] = image
    text = _words(decision).encode("ascii", "replace").decode()  # OpenCV's letters
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)
    scale = 0.55 * min(1.0, width / (1.06 * wide + 1))  # what is measured is a little less than what is drawn
    at = (_BORDER + 2, height + 2 * _BORDER + _LINE - 10)
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return encode_jpeg(canvas, 80, "bgr")


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Within the frame's room, and a tiny picture enlarged by a whole factor, so that one can see it."""
    room = SIDE - 2 * _BORDER
    longer = max(image.shape[:2])
    factor = min(1.0, room / longer) if longer > _SMALLEST else float(_SMALLEST // longer)
    if factor == 1.0:
        return image
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, (width, height), interpolation=way), np.uint8)
