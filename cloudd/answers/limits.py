"""Bounds that both sides of the answer worker's socket keep."""

from __future__ import annotations

MAX_PICTURE = 16 << 20
"""Bytes of one picture, or of the features of one."""
MAX_THUMBNAIL = 1 << 20
"""Bytes of a thumbnail; a JPEG of its size takes 20 KiB."""
THUMBNAIL_SIDE = 240
"""Pixels of its longer side."""
KEEP_MODELS = 2
"""Packages whose models a worker holds in memory; the one used longest ago makes room for another. Of a tail package
it holds the cuts that were asked."""
