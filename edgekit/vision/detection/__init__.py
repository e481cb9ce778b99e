"""From the bytes of a picture to boxes: models' heads, suppression, tiles, template comparison, measures."""

from __future__ import annotations
