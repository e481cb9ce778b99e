"""From the bytes of a picture to an answer: header check, decoding, pre-processing and classification."""

from __future__ import annotations

import os

MAX_PIXELS = 1 << 25
"""33,554,432 pixels, 96 MiB decoded in colour: above the largest area sensors that are usual on a line."""

# OpenCV reads both when it is imported, and every importer of it in this package passes through here first. Its own
# limit guards the decoder even where a header lies to our check. Its messages about broken pictures are silenced;
# libpng and libjpeg below it still write lines of their own to stderr, which the journal limits in rate.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
