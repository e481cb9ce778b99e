"""Keys of one round: X25519 key pairs, keys derived from them with HKDF-SHA256, sealed shares."""

from __future__ import annotations

import hmac
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

KEY = 32
TAG = 16
_NONCE = bytes(12)  # every key seals one message


class KeyPair:
    """An X25519 key pair."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._private = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._private.public_key().public_bytes_raw()

    @classmethod
    def new(cls, random: Callable[[int], bytes]) -> KeyPair:
        """A pair from 32 random bytes."""
        return cls(random(KEY))

    @classmethod
    def from_seed(cls, seed: bytes, salt: bytes) -> KeyPair:
        """The pair of a shared seed. The salt is one device's in one round, so that seeds are attacked one by one."""
        return cls(derive(seed, salt, b"mask key"))

    def agree(self, public: bytes) -> bytes:
        """The shared secret, 32 bytes. Raises ValueError for a point of low order: it would make the secret known."""
        return self._private.exchange(X25519PublicKey.from_public_bytes(public))


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) with one block of output: 32 bytes."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\1", "sha256")


def commit(seed: bytes, salt: bytes) -> bytes:
    """What binds a device to the seed of its own mask: 32 bytes. The salt as in `KeyPair.from_seed`."""
    return derive(seed, salt, b"commitment")


def seal(key: bytes, text: bytes, associated: bytes) -> bytes:
    """ChaCha20-Poly1305 under a key that seals nothing else; 16 bytes longer than the text."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes | None:
    """The text, or None if the bytes were not sealed with this key and these associated data."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, associated)
    except InvalidTag:
        return None
