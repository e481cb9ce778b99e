"""Encryption of spooled samples: AES-256-GCM, one random key a file, wrapped by the device's key-encryption key (KEK).

    "EDS1" | KEK id (8) | nonce (12) | wrapped data key (48) | nonce (12) | ciphertext and tag

Both layers are bound to device id, sample id and format, so that a file renamed, copied to another device or given
another version does not open. Whoever destroys the KEK destroys every sample.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgekit.atomic import fsync_dir, write_file

_MAGIC = b"EDS1"
_KEY = 32
_NONCE = 12
_TAG = 16
_ID = 8
_HEAD = len(_MAGIC) + _ID + _NONCE + _KEY + _TAG + _NONCE
OVERHEAD = _HEAD + _TAG
"""Bytes that sealing adds."""


class SealError(RuntimeError):
    """The file does not open: damaged, of another device, or sealed with another key. The message says which."""


class WrongKey(SealError):
    """The file was sealed with another key-encryption key; `key_id` says with which."""

    def __init__(self, text: str, key_id: str) -> None:
        super().__init__(text)
        self.key_id = key_id


class Kek:
    """The key-encryption key: 32 secret bytes that wrap every file's own key."""

    def __init__(self, secret: bytes) -> None:
        """Raises SealError if the secret does not have 32 bytes."""
        if len(secret) != _KEY:
            raise SealError(f"the key-encryption key has {len(secret)} bytes; {_KEY} are needed")
        self._cipher = AESGCM(secret)
        self._mark = hashlib.sha256(b"edged kek id" + secret).digest()[:_ID]
        self.id = self._mark.hex()
        """Tells keys apart and says nothing about the secret. Every sealed file names its key."""

    @classmethod
    def open(cls, path: Path, credentials: Path | None = None) -> Kek:
        """The key from `credentials`/kek (systemd's $CREDENTIALS_DIRECTORY) if it is there, else from `path`.

        A missing `path` is made (0600) with a new key, durably. Raises SealError for a damaged key, OSError.
        """
        found = cls.find(path, credentials)
        if found is not None:
            return found
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        write_file(fresh, secrets.token_bytes(_KEY))
        with contextlib.suppress(FileExistsError):  # another process was first: its key counts
            path.hardlink_to(fresh)
        fresh.unlink()
        fsync_dir(path.parent)
        return cls(path.read_bytes())

    @classmethod
    def find(cls, path: Path, credentials: Path | None = None) -> Kek | None:
        """The key as `open` would find it, None if there is none. Raises SealError for a damaged key, OSError."""
        places = [path] if credentials is None else [credentials / "kek", path]
        return next((cls(place.read_bytes()) for place in places if place.exists()), None)

    def seal(self, plain: bytes, device_id: str, sample_id: str) -> bytes:
        """Encrypt one sample; the result is OVERHEAD bytes longer."""
        bound = _bound(device_id, sample_id)
        key, outer, inner = secrets.token_bytes(_KEY), os.urandom(_NONCE), os.urandom(_NONCE)
        wrapped = self._cipher.encrypt(outer, key, bound)
        return b"".join((_MAGIC, self._mark, outer, wrapped, inner, AESGCM(key).encrypt(inner, plain, bound)))

    def unseal(self, sealed: bytes, device_id: str, sample_id: str) -> bytes:
        """Decrypt one sample. Raises SealError, WrongKey if another key would open it."""
        if len(sealed) < OVERHEAD or not sealed.startswith(_MAGIC):
            raise SealError(f"sample {sample_id} is not a sealed file")
        at = len(_MAGIC)
        if sealed[at : at + _ID] != self._mark:
            text = f"sample {sample_id} was sealed with another key-encryption key"
            raise WrongKey(text, sealed[at : at + _ID].hex())
        outer = sealed[at + _ID : at + _ID + _NONCE]
        wrapped = sealed[at + _ID + _NONCE : _HEAD - _NONCE]
        bound = _bound(device_id, sample_id)
        try:
            key = self._cipher.decrypt(outer, wrapped, bound)
            return AESGCM(key).decrypt(sealed[_HEAD - _NONCE : _HEAD], sealed[_HEAD:], bound)
        except InvalidTag:
            raise SealError(f"sample {sample_id} is damaged or belongs to another device") from None


def _bound(device_id: str, sample_id: str) -> bytes:
    return b"\0".join((_MAGIC, device_id.encode(), sample_id.encode()))
