"""What a device keeps of a round over a restart."""

from __future__ import annotations

import msgspec

from edgekit.secagg.messages import Held, Inbox, Keys, Masked, Reveal, Roll, Shares, Vote


class ClientState(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """All that a round needs after a restart. Secret."""

    channel: bytes
    mask_seed: bytes
    own_seed: bytes
    keys: Keys
    roll: Roll | None = None
    shares: Shares | None = None
    own: tuple[bytes, bytes] = (b"", b"")
    inbox: Inbox | None = None
    held: Held | None = None
    masked: Masked | None = None
    sent: int = 0
    survivors: bytes = b""
    vote: Vote | None = None
    reveal: Reveal | None = None
