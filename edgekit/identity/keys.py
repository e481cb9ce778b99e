"""Device and server keys: ECDSA P-256, the one curve that every TPM 2.0 and every TLS stack has."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.atomic import write_file
from edgekit.identity.errors import IdentityError

Keyed = ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey | x509.Certificate
"""Anything that has one public key."""


def generate_key() -> ec.EllipticCurvePrivateKey:
    """A new P-256 key from the system's randomness."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8 PEM, unencrypted: the file's mode guards it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def save_key(key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    """Write the key with mode 0600, atomically and durably. Raises OSError."""
    write_file(path, key_pem(key), 0o600)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 key. Raises OSError if the file cannot be read, IdentityError if it holds something else."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{path} does not hold a readable private key ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{path} holds another kind of key; an ECDSA P-256 key is needed")
    return key


def load_or_create_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key at `path`; made and saved there first if there is none. Raises as load_key and save_key do."""
    if not path.exists():
        save_key(generate_key(), path)
    return load_key(path)


def spki_der(keyed: Keyed) -> bytes:
    """DER of the SubjectPublicKeyInfo: what fingerprints and device ids are made of."""
    public = keyed if isinstance(keyed, ec.EllipticCurvePublicKey) else keyed.public_key()
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(keyed: Keyed) -> str:
    """base64url of the SHA-256 of the SubjectPublicKeyInfo, without padding: 43 characters."""
    return base64.urlsafe_b64encode(hashlib.sha256(spki_der(keyed)).digest()).rstrip(b"=").decode()


def spki_hex(keyed: Keyed) -> str:
    """SHA-256 of the SubjectPublicKeyInfo in hex; its first 16 digits stand in the DNS-SD record."""
    return hashlib.sha256(spki_der(keyed)).hexdigest()
