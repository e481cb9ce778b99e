"""The difference hash of a picture. It needs OpenCV, so the worker and the command line compute it, not the supervisor.

dHash: the picture as 9x8 grey pixels, one bit for each pixel that is darker than its right neighbour
(N. Krawetz, "Kind of Like That", 2013, https://www.hackerfactor.com/blog/?/archives/529-Kind-of-Like-That.html).
"""

from __future__ import annotations

import cv2
import numpy as np

from edgekit.vision.images import decode

_ENOUGH = (36, 32)
"""Pixels that a JPEG is decoded to at least: four for each pixel of the thumbnail."""


def difference_hash(picture: bytes) -> int:
    """64 bits of a JPEG or PNG; pictures that look alike differ in few of them. Raises ImageError."""
    grey = decode(picture, "grey", reduce_to=_ENOUGH)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")
