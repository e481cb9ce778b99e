"""The newest decided picture of a service, with its decision drawn on it, for people who look at the status page.

Nothing is drawn before somebody asks, and then once a picture, in one thread for all services: a look at a line must
not slow it down.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekit.messages import NOTHING_FOUND, DecidedRegion, Decision
from edgekit.regions.header import NOTHING
from edgekit.services import DecisionRules
from edgekit.vision.anomaly import Heat
from edgekit.vision.images import decode, encode_jpeg
from edgekit.vision.sniff import sniff

SIDE = 640
"""Pixels of the longer side at most, without the line of text below."""
MAX_KEPT = 4 << 20
"""Bytes. A larger encoded picture is not kept, so that many services cannot hold much memory for nobody's eyes."""
MAX_TEXT = 120
MAX_NAMED = 20
"""Regions that get their label beside them; more would hide the picture. All are drawn."""
_HEAT = 0.6  # how much of a pixel's colour the map takes where a place is surely anomalous
_RED = np.array([30, 38, 230], np.float64)  # BGR
_BORDER = 6
_LINE = 28
_SMALLEST = 320
_NAME_SCALE, _MAX_NAME = 0.4, 32
# BGR, the page's own colours: white letters are readable on each. The verdict stands there as a word, too.
_COLOURS = {"pass": (75, 127, 26), "fail": (30, 38, 179), "review": (0, 91, 154), "": (168, 99, 37)}

_drawing = ThreadPoolExecutor(1, thread_name_prefix="preview")


class Preview:
    """Keeps one picture and its decision. Use it on the event loop."""

    def __init__(self, rules: DecisionRules | None = None, clean: str = NOTHING) -> None:
        """`rules` give the regions their colours; `clean` is the label of one without a defect."""
        self._rules, self._clean = rules, clean
        self._newest: tuple[bytes, Decision, Heat | None] | None = None
        self._told: Decision | None = None
        self._drawn: tuple[str, bytes] = ("", b"")

    def keep(
        self, picture: bytes | bytearray, decision: Decision, heat: Heat | None = None, told: Decision | None = None
    ) -> None:
        """Remember what was decided, and where it is anomalous; the picture is not copied unless it could change.

        `told` is what `text` may say of it, which goes to cloudd as well; None: all.
        """
        self._newest = (bytes(picture), decision, heat) if len(picture) <= MAX_KEPT else None
        self._told = told or decision

    @property
    def text(self) -> str:
        """What the picture shows, in words; "" while there is none."""
        return _words(self._told) if self._newest is not None and self._told is not None else ""

    async def jpeg(self) -> bytes | None:
        """The picture as it may be shown, None while there is none. Raises ImageError if it cannot be drawn."""
        if self._newest is None:
            return None
        picture, decision, heat = self._newest
        if self._drawn[0] != decision.sample_id:
            loop = asyncio.get_running_loop()
            work = partial(draw, picture, decision, self._rules, self._clean, heat)
            self._drawn = (decision.sample_id, await loop.run_in_executor(_drawing, work))
        return self._drawn[1]


def _words(decision: Decision) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(decision.captured_at))
    verdict = f"{decision.verdict}: " if decision.verdict else ""
    many = f", {decision.defects} defects" if decision.defects > 1 else ""
    return f"{verdict}{decision.label[:MAX_TEXT]} {decision.score:.1%}{many}, {at}, {decision.decided}"


def draw(
    picture: bytes,
    decision: Decision,
    rules: DecisionRules | None = None,
    clean: str = NOTHING,
    heat: Heat | None = None,
) -> bytes:
    """A JPEG of at most SIDE pixels a side: the picture in a frame of the verdict's colour, the decision below.

    With `heat` the picture turns red where it is anomalous. Each region stands in its place, in the colour that the
    rules give its label; one that the cloud cleared with a thin line. Raises ImageError.
    """
    image = _fitted(decode(picture, "bgr", reduce_to=(SIDE, SIDE)))
    info = sniff(picture)
    if heat is not None:
        image = _heated(image, heat, (info.width, info.height))
    if decision.regions:
        image = _marked(image, decision.regions, (info.width, info.height), rules, clean)
    colour = _COLOURS[decision.verdict]
    height, width = image.shape[:2]
    canvas = np.full((height + 2 * _BORDER + _LINE, width + 2 * _BORDER, 3), colour, np.uint8)
    canvas[_BORDER : _BORDER + height, _BORDER : _BORDER + width] = image
    text = _letters(_words(decision))
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.55, 1)
    scale = 0.55 * min(1.0, width / (1.06 * wide + 1))  # what is measured is a little less than what is drawn
    at = (_BORDER + 2, height + 2 * _BORDER + _LINE - 10)
    cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return encode_jpeg(canvas, 80, "bgr")


def _heated(image: NDArray[np.uint8], heat: Heat, full: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture, the redder the more anomalous a place is; `full` is the size that the map's places refer to."""
    height, width = image.shape[:2]
    scale = np.array([width / full[0], height / full[1]])
    # Of the map's edges; OpenCV wants centres.
    to_image = heat.to_picture * scale[:, np.newaxis]
    to_image[:, 2] += to_image[:, :2] @ np.array([0.5, 0.5]) - 0.5
    values = cv2.warpAffine(heat.values, to_image, (width, height), flags=cv2.INTER_LINEAR)
    share = (np.clip(2 * values - 0.5, 0, 1) * _HEAT)[:, :, np.newaxis]
    return np.asarray(np.rint(image * (1 - share) + _RED * share), np.uint8)


def _marked(
    image: NDArray[np.uint8],
    regions: list[DecidedRegion],
    full: tuple[int, int],
    rules: DecisionRules | None,
    clean: str,
) -> NDArray[np.uint8]:
    """A copy with the regions drawn in; `full` is the size of the picture that their boxes belong to. The surest defect
    comes last, over all others."""
    image = np.ascontiguousarray(image).copy()
    height, width = image.shape[:2]
    across, down = width / full[0], height / full[1]
    ordered = sorted(regions, key=lambda one: (one.label not in (NOTHING, clean), one.score))
    for place, region in enumerate(ordered):
        label = region.label or NOTHING_FOUND
        colour = _COLOURS[rules.verdict(label, region.score, region.margin) if rules is not None else ""]
        left, top, right, bottom = region.box
        # Around the region, so that what is in it can be seen, as far as there is room.
        first = max(0, math.floor(left * across) - 2), max(0, math.floor(top * down) - 2)
        last = min(width - 1, math.ceil(right * across) + 1), min(height - 1, math.ceil(bottom * down) + 1)
        cv2.rectangle(image, first, last, colour, 1 if region.label in (NOTHING, clean) else 2)
        if len(ordered) - place <= MAX_NAMED:
            asked = f" {region.decided}" if region.decided != "edge" else ""
            _name(image, _letters(f"{label[:_MAX_NAME]} {region.score:.0%}{asked}"), first, last, colour)
    return image


def _name(
    image: NDArray[np.uint8], text: str, first: tuple[int, int], last: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """White letters on the region's colour: above the region, below it if it begins at the top, always inside."""
    (wide, high), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, _NAME_SCALE, 1)
    wide, high = wide + 4, high + base + 2
    left = max(0, min(first[0], image.shape[1] - wide))
    top = first[1] - high if first[1] >= high else max(0, min(last[1] + 1, image.shape[0] - high))
    cv2.rectangle(image, (left, top), (left + wide, top + high - 1), colour, cv2.FILLED)
    at = (left + 2, top + high - base)
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, _NAME_SCALE, (255, 255, 255), 1, cv2.LINE_AA)


def _letters(text: str) -> str:
    """What OpenCV can write."""
    return text.encode("ascii", "replace").decode()


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
