"""ECDSA P-256 signatures of fixed size, each bound to the protocol and to one kind of statement."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

SIGNATURE = 64
"""Bytes: r and s, each 32, big endian."""
POINT = 33
"""Bytes of a compressed public key."""
_DOMAIN = b"edged/secagg/2/"
_LASTING_DOMAIN = b"edged/secagg/1/"
_LASTING = frozenset({"roster", "audit"})  # kept for years, and in the same form in both versions
_HASH = ec.ECDSA(hashes.SHA256())

Signer = Callable[[str, bytes], bytes]
"""(kind, statement) -> 64 bytes. A function, because the key may live in a TPM."""


def signer(key: ec.EllipticCurvePrivateKey) -> Signer:
    """Sign with a P-256 key in memory."""

    def sign(kind: str, statement: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(_bound(kind, statement), _HASH))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


def holds(key: ec.EllipticCurvePublicKey, kind: str, statement: bytes, signature: bytes) -> bool:
    """Whether the signature over this kind of statement is the key's."""
    if len(signature) != SIGNATURE:
        return False
    der = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(der, _bound(kind, statement), _HASH)
    except InvalidSignature:
        return False
    return True


def point(key: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as a compressed point, 33 bytes."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def from_point(data: bytes) -> ec.EllipticCurvePublicKey:
    """Read a compressed point. Raises ValueError for anything that is no point of P-256."""
    if len(data) != POINT:
        raise ValueError(f"a public key has {POINT} bytes; this one has {len(data)}")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), data)


def _bound(kind: str, statement: bytes) -> bytes:
    return (_LASTING_DOMAIN if kind in _LASTING else _DOMAIN) + kind.encode() + b"\0" + statement
