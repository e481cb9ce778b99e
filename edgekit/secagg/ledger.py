"""What a device has done once and for all: the memory that makes "once" true across crashes."""

from __future__ import annotations

import hashlib
import hmac
from typing import Protocol

from edgekit.secagg.errors import Refusal


class Ledger(Protocol):
    """A map whose entries are written once, durably, before the caller goes on."""

    def settle(self, key: bytes, value: bytes) -> bytes:
        """Store `value` (32 bytes) under `key` (32 bytes) unless something stands there; return what stands there.

        It returns only when the entry would survive a power cut. Entries are never changed; those of a session may be
        removed when the device will refuse that session for ever. Raises OSError if it cannot write: then the step
        that asked does not happen.
        """


class MemoryLedger:
    """A ledger for tests and simulators: it forgets when its process ends."""

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes] = {}

    def settle(self, key: bytes, value: bytes) -> bytes:
        """See Ledger."""
        return self._entries.setdefault(key, value)


class RoundLedger:
    """One round's part of a ledger. Both methods raise Refusal("once") instead of doing something a second time."""

    def __init__(self, ledger: Ledger, session: bytes, number: int) -> None:
        self._ledger, self._round = ledger, session + number.to_bytes(4, "big")

    def once(self, step: str, value: bytes) -> None:
        """Settle what this device does in a step: the same again is fine."""
        if not hmac.compare_digest(self._ledger.settle(entry(self._round, step.encode()), value), value):
            raise Refusal("once", f"this device has already settled something different in this round ({step})")

    def contribute(self, model: bytes, repeats: int) -> None:
        """Take one of the `repeats` + 1 contributions to a model that this device will ever make."""
        this = hashlib.sha256(self._round).digest()
        for turn in range(repeats + 1):
            if hmac.compare_digest(self._ledger.settle(entry(b"model", model, turn.to_bytes(4, "big")), this), this):
                return
        raise Refusal("once", "this device has contributed to this model in another round (repeats)")


def entry(*parts: bytes) -> bytes:
    """The key of an entry: a digest of its parts, each with its length."""
    # the label is older than secagg/2 and stays: under another one a device would contribute to a model again
    text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.sha256(b"edged/secagg/1/ledger\0" + text).digest()
