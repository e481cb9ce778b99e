"""The DNS-SD record by which a device finds its cloudd: its type, what it says, and how little of it is believed.

Everybody on the network can publish one. It is a hint where to ask; only a handshake with the pinned authority counts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Final, TypeVar

from zeroconf import IPVersion

T = TypeVar("T")

SERVICE_TYPE: Final = "_cloudd._tcp.local."
PIN_DIGITS: Final = 16
"""Hex digits of the authority's fingerprint in a record: enough to pick one's own, useless for trust."""
MAX_NAME: Final = 48
"""Characters of cloudd's name. With a suffix against duplicates it stays below the 63 bytes of a DNS label."""
_VERSION: Final = "1"


def pin_of(fingerprint: str) -> str:
    """The hex digits that a record shows of a base64url fingerprint; "" if it is not one."""
    try:
        return base64.urlsafe_b64decode(fingerprint + "=" * (-len(fingerprint) % 4)).hex()[:PIN_DIGITS]
    except (binascii.Error, ValueError):
        return ""


def properties(fingerprint: str, name: str) -> dict[str, str]:
    """The TXT record of a cloudd whose authority has this fingerprint."""
    return {"v": _VERSION, "fp": pin_of(fingerprint), "name": plain(name)}


def read_properties(txt: dict[str, str | None]) -> tuple[str, str] | None:
    """(pin, name) of a hostile TXT record, cut to size; None if it is of another version."""
    if txt.get("v") != _VERSION:
        return None
    return (txt.get("fp") or "").lower()[:PIN_DIGITS], plain(txt.get("name") or "")


def plain(name: str) -> str:
    """A name on one line and short enough for a record."""
    return "".join(character for character in name if character.isprintable())[:MAX_NAME].strip()


def first_that_opens(start: Callable[[IPVersion], T]) -> T:
    """`start` a responder with IPv4 and IPv6, else with the one that this machine has at the moment.

    Raises OSError if neither works, as on a machine without a network.
    """
    failure: Exception | None = None
    for version in (IPVersion.All, IPVersion.V4Only, IPVersion.V6Only):
        try:
            return start(version)
        except Exception as error:  # zeroconf raises several kinds for a missing address family
            failure = error
    raise OSError(f"no usable network interface ({failure})")
