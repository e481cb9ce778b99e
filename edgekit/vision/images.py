"""Decode and encode pictures with OpenCV, with every size bounded before a byte is decoded.

What is decided here, because a picture can be read in more than one way:

- The EXIF orientation is ignored: pixels come as the sensor stored them, as torchvision and Pillow read them, so what a
  model was trained on is what it sees, and the size in the header is the size of the array.
- Alpha is dropped, never blended. 16 bits per channel become 8 by keeping the high byte (rounded).
- Grey pictures become three equal channels when colour is asked for; colour becomes grey by ITU-R BT.601 weights.
- CMYK JPEGs are converted without a colour profile, as OpenCV does. Embedded profiles are ignored.
- A picture cut short is an error: decoders fill the rest with grey, which would be inspected as if it were the board.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekit.vision import MAX_PIXELS
from edgekit.vision.sniff import ImageError, ImageInfo, sniff

__all__ = [
    "MAX_PIXELS",
    "Colour",
    "ImageError",
    "ImageInfo",
    "decode",
    "encode_jpeg",
    "encode_png",
    "sniff",
    "thumbnail",
]

Colour = Literal["rgb", "bgr", "grey"]

cv2.setNumThreads(1)  # the workers are the threads; OpenCV's own pool would fight them for the cores

_FLAGS = {"rgb": cv2.IMREAD_COLOR_RGB, "bgr": cv2.IMREAD_COLOR_BGR, "grey": cv2.IMREAD_GRAYSCALE}
_REDUCED = {
    ("colour", 2): cv2.IMREAD_REDUCED_COLOR_2,
    ("colour", 4): cv2.IMREAD_REDUCED_COLOR_4,
    ("colour", 8): cv2.IMREAD_REDUCED_COLOR_8,
    ("grey", 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    ("grey", 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    ("grey", 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


def decode(
    data: bytes,
    colour: Colour = "rgb",
    max_pixels: int = MAX_PIXELS,
    reduce_to: tuple[int, int] | None = None,
    webp: bool = False,
) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG (with `webp` also a lossy WebP) to uint8, HxWx3 for "rgb" and "bgr", HxW for "grey".

    `reduce_to` (width, height) allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size as long as neither side falls
    below it: about three times faster for a camera frame, and close to an area resize. Raises ImageError for anything
    that is not a whole picture of at most `max_pixels` pixels; nothing is decoded before those checks.
    """
    info = sniff(data, webp=webp)
    if info.pixels > max_pixels:
        raise ImageError(f"{info.width}x{info.height} pixels exceed the limit of {max_pixels} pixels")
    factor = _reduction(info, reduce_to)
    flag = _FLAGS[colour]
    if factor > 1:
        flag = _REDUCED["grey" if colour == "grey" else "colour", factor]
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ImageError(f"the {info.format.upper()} cannot be decoded: {error.err}") from error
    if image is None:
        raise ImageError(f"the {info.format.upper()} is damaged and cannot be decoded")
    if factor > 1 and colour == "rgb":  # OpenCV has no reduced flag that gives RGB
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return np.asarray(image, np.uint8)


def _reduction(info: ImageInfo, reduce_to: tuple[int, int] | None) -> int:
    if reduce_to is None or info.format != "jpeg":
        return 1
    for factor in (8, 4, 2):
        if info.width >= factor * reduce_to[0] and info.height >= factor * reduce_to[1]:
            return factor
    return 1


def encode_jpeg(image: NDArray[np.uint8], quality: int = 90, colour: Colour = "rgb") -> bytes:
    """Encode HxWx3 in `colour` order, or HxW, as a JPEG of `quality` 1..100. Raises ImageError for another array."""
    return _encode(image, colour, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])


def encode_png(image: NDArray[np.uint8], colour: Colour = "rgb") -> bytes:
    """Encode HxWx3 in `colour` order, or HxW, as a PNG. Raises ImageError for another array."""
    return _encode(image, colour, ".png", [])


def _encode(image: NDArray[np.uint8], colour: Colour, suffix: str, parameters: list[int]) -> bytes:
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or (image.ndim == 3 and image.shape[2] != 3)
        or not image.size
    ):
        raise ImageError(f"an array of {image.dtype.name} with the shape {image.shape} is no picture")
    if image.ndim == 3 and colour == "rgb":
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
    ok, encoded = cv2.imencode(suffix, image, parameters)
    if not ok:
        raise ImageError("the picture cannot be encoded")
    return bytes(encoded)


def thumbnail(image: NDArray[np.uint8], side: int = 160, colour: Colour = "rgb") -> bytes:
    """A JPEG whose longer side has at most `side` pixels; a smaller picture keeps its size."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor < 1:
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return encode_jpeg(image, 80, colour)
