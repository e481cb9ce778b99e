"""Device ids: SHA-256 of the device's public key in base32, with check characters, as people read and type them.

52 base32 characters are cut into four parts of 13, each followed by its Luhn-mod-32 check character; the 56 characters
are shown as eight groups of seven (the layout of Syncthing's device ids). Luhn finds every single wrong character and
every swap of neighbours except that of the first and last letter of the alphabet.
"""

from __future__ import annotations

import base64
import hashlib
import re

from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.identity.errors import IdentityError
from edgekit.identity.keys import spki_der

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PART = 13
_GROUP = 7
_LENGTH = 56
_TYPOS = str.maketrans({"0": "O", "1": "I", "8": "B"})  # digits that base32 leaves out because they look like letters


def device_id(public_key: ec.EllipticCurvePublicKey) -> str:
    """The canonical id: eight groups of seven characters joined by dashes, 63 characters."""
    return format_digest(hashlib.sha256(spki_der(public_key)).digest())


def format_digest(digest: bytes) -> str:
    """Show a 32-byte digest as a device id."""
    text = base64.b32encode(digest).decode().rstrip("=")
    parts = [text[i : i + _PART] for i in range(0, len(text), _PART)]
    return _grouped("".join(part + _check_character(part) for part in parts))


def parse_device_id(text: str) -> str:
    """The canonical form of an id as a person typed it: any case, spaces, missing dashes, 0 for O, 1 for I, 8 for B.

    Raises IdentityError with a sentence if it is not a device id or a check character does not fit.
    """
    plain = re.sub(r"[\s-]", "", text[:200]).upper().translate(_TYPOS)
    if len(plain) != _LENGTH:
        raise IdentityError(f"a device id has {_LENGTH} letters and digits; this one has {len(plain)}")
    foreign = sorted(set(plain) - set(_ALPHABET))
    if foreign:
        raise IdentityError(f"a device id has only letters and the digits 2 to 7, not {' '.join(map(repr, foreign))}")
    for start in range(0, _LENGTH, _PART + 1):
        part, check = plain[start : start + _PART], plain[start + _PART]
        if _check_character(part) != check:
            first = start // _GROUP + 1
            raise IdentityError(f"the device id has a typing error in group {first} or {first + 1}")
    return _grouped(plain)


def short_id(full: str) -> str:
    """The first group: enough for a person to tell devices apart, never enough to trust one."""
    return full.split("-", 1)[0]


def _grouped(plain: str) -> str:
    return "-".join(plain[i : i + _GROUP] for i in range(0, len(plain), _GROUP))


def _check_character(part: str) -> str:
    base = len(_ALPHABET)
    total = 0
    for position, character in enumerate(reversed(part)):
        addend = _ALPHABET.index(character) * (2 if position % 2 == 0 else 1)
        total += addend // base + addend % base
    return _ALPHABET[-total % base]
