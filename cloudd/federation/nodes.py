"""A device as the certificate names it, and as `secagg/2` does."""

from __future__ import annotations

import base64

_PART = 14  # characters of which the last is a check character


def node_of(device_id: str) -> bytes:
    """The 32 bytes of which a canonical device id is the printed form."""
    plain = device_id.replace("-", "")
    text = "".join(plain[start : start + _PART - 1] for start in range(0, len(plain), _PART))
    return base64.b32decode(text + "=" * (-len(text) % 8))
