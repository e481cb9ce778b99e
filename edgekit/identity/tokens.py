"""Join tokens: what a person carries from cloudd to a device. They pin the authority before a byte is sent to it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from edgekit.identity.errors import IdentityError

_PREFIX = "edg1"
_ID_BYTES = 9
_SECRET_BYTES = 32
_FINGERPRINT = re.compile(r"[A-Za-z0-9_-]{43}")
_TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{8,24}")
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_MAX_TEXT = 512


@dataclass(frozen=True)
class JoinToken:
    """One invitation. The secret is kept out of `repr`, so that no log shows it by accident."""

    fingerprint: str  # of the authority, as edgekit.identity.keys.fingerprint writes it
    token_id: str
    secret: str = field(repr=False)

    def text(self) -> str:
        """`edg1.<fingerprint>.<id>.<secret>`, to be copied whole."""
        return ".".join((_PREFIX, self.fingerprint, self.token_id, self.secret))


def new_token(fingerprint: str, rng: Callable[[int], bytes] = secrets.token_bytes) -> JoinToken:
    """A token with a 256-bit secret for the authority with this fingerprint."""
    return JoinToken(fingerprint, _encode(rng(_ID_BYTES)), _encode(rng(_SECRET_BYTES)))


def parse_token(text: str) -> JoinToken:
    """Read a pasted token; quotes, spaces and line breaks around and inside it are forgiven. Raises IdentityError."""
    plain = re.sub(r"[\s\"'`]", "", text[: _MAX_TEXT + 1])
    if not plain:
        raise IdentityError("the token is empty; `cloudd invite` prints one")
    if len(plain) > _MAX_TEXT:
        raise IdentityError("the token is too long; copy only the one line that `cloudd invite` printed")
    parts = plain.split(".")
    if parts[0] != _PREFIX:
        raise IdentityError(f"this is not a join token: it should begin with '{_PREFIX}.'; `cloudd invite` prints one")
    if len(parts) != 4:
        raise IdentityError(
            f"the token has {len(parts)} parts instead of 4; copy the whole line `cloudd invite` printed"
        )
    _, pin, token_id, secret = parts
    if not (_FINGERPRINT.fullmatch(pin) and _TOKEN_ID.fullmatch(token_id) and _SECRET.fullmatch(secret)):
        raise IdentityError("the token is damaged or cut off; copy the whole line that `cloudd invite` printed")
    return JoinToken(pin, token_id, secret)


def hash_secret(secret: str) -> str:
    """What cloudd stores instead of the secret: SHA-256 in hex. The secret is random, so a slow hash adds nothing."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def check_secret(secret: str, stored_hash: str) -> bool:
    """Whether the secret belongs to the stored hash; takes the same time for every wrong one."""
    return hmac.compare_digest(hash_secret(secret).encode(), stored_hash.encode("utf-8", "surrogatepass"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
