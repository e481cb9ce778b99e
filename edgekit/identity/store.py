"""A device's identity on disk: one directory a certificate, swapped in by one rename.

    device-key.pem            made at the first start; the device id is its hash
    <serial>/                 key.pem (0600), certificate.pem, authority.pem: always a matching set
    current -> <serial>       replaced atomically

A power cut leaves the old set or the new one. The set before the current one is kept, because another process may be
about to read it.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.atomic import fsync_dir, sweep, write_file
from edgekit.faults import crash_point
from edgekit.identity.authority import certificate_text, device_id_of, issued_by, parse_certificate
from edgekit.identity.device_id import device_id
from edgekit.identity.errors import IdentityError
from edgekit.identity.keys import fingerprint, key_pem, load_key, load_or_create_key, spki_der

KEY = "key.pem"
CERTIFICATE = "certificate.pem"
AUTHORITY = "authority.pem"
_CURRENT = "current"
_TEMPORARY = ".new-"


@dataclass(frozen=True)
class Identity:
    """One complete, checked set of key, certificate and authority."""

    directory: Path
    certificate: x509.Certificate
    authority: x509.Certificate

    @property
    def device_id(self) -> str:
        """Of the certificate's key."""
        return device_id_of(self.certificate)

    @property
    def authority_fingerprint(self) -> str:
        """The pin: whoever cannot prove this key is not our cloudd."""
        return fingerprint(self.authority)

    @property
    def not_before(self) -> float:
        """Seconds since the epoch."""
        return self.certificate.not_valid_before_utc.timestamp()

    @property
    def not_after(self) -> float:
        """Seconds since the epoch."""
        return self.certificate.not_valid_after_utc.timestamp()

    @property
    def key_path(self) -> Path:
        """PEM file of the private key."""
        return self.directory / KEY

    @property
    def certificate_path(self) -> Path:
        """PEM file of the device certificate."""
        return self.directory / CERTIFICATE

    @property
    def authority_path(self) -> Path:
        """PEM file of the pinned authority."""
        return self.directory / AUTHORITY


class IdentityStore:
    """Reads and replaces the identity in one directory. One process writes; any number read."""

    def __init__(self, directory: Path) -> None:
        """Creates the directory (0700) and the device key if they are missing. Raises OSError or IdentityError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.key: ec.EllipticCurvePrivateKey = load_or_create_key(directory / "device-key.pem")

    @property
    def device_id(self) -> str:
        """The id of this device, joined or not."""
        return device_id(self.key.public_key())

    def current(self) -> Identity | None:
        """The present identity, None if the device has not joined. Raises IdentityError if it is damaged."""
        link = self.directory / _CURRENT
        if not link.is_symlink():
            return None
        try:
            return _read(link.resolve(strict=True))
        except (OSError, IdentityError) as error:
            raise IdentityError(f"the stored identity is damaged ({error}); join again with a new token") from error

    def sweep(self) -> None:
        """Remove what a power cut left half-written. Call it at start, before anything else writes. Raises OSError."""
        sweep(self.directory)
        for entry in self.directory.glob(f"{_TEMPORARY}*"):
            if entry.is_symlink():
                entry.unlink()
            else:
                shutil.rmtree(entry, ignore_errors=True)

    def install(self, certificate_pem: str, authority_pem: str) -> Identity:
        """Make this certificate the current one, durably; the certificate must be for the device key.

        Raises IdentityError (and changes nothing) if the parts do not belong together, OSError if the disk fails.
        """
        certificate, authority = parse_certificate(certificate_pem), parse_certificate(authority_pem)
        if spki_der(certificate) != spki_der(self.key):
            raise IdentityError("the certificate was issued for another key")
        if not issued_by(certificate, authority):
            raise IdentityError("the certificate was not issued by the authority that came with it")
        target = self.directory / f"{certificate.serial_number:x}"
        if not target.exists():
            self._write(target, certificate, authority)
        crash_point("identity.written")
        previous = self._target()
        self._swap(target)
        crash_point("identity.swapped")
        self._prune({target.name, previous})
        return _read(target)

    def _write(self, target: Path, certificate: x509.Certificate, authority: x509.Certificate) -> None:
        temporary = self.directory / f"{_TEMPORARY}{secrets.token_hex(4)}"
        temporary.mkdir(mode=0o700)
        write_file(temporary / KEY, key_pem(self.key), 0o600)
        write_file(temporary / CERTIFICATE, certificate_text(certificate).encode(), 0o644)
        write_file(temporary / AUTHORITY, certificate_text(authority).encode(), 0o644)
        temporary.rename(target)
        fsync_dir(self.directory)

    def _swap(self, target: Path) -> None:
        temporary = self.directory / f"{_TEMPORARY}{secrets.token_hex(4)}"
        temporary.symlink_to(target.name)
        temporary.replace(self.directory / _CURRENT)
        fsync_dir(self.directory)

    def _target(self) -> str:
        link = self.directory / _CURRENT
        return str(link.readlink()) if link.is_symlink() else ""

    def _prune(self, keep: set[str]) -> None:
        """Remove what no one needs any more: older sets and what a power cut left half-written."""
        for entry in self.directory.iterdir():
            if entry.is_symlink():
                if entry.name.startswith(_TEMPORARY):
                    entry.unlink()
            elif entry.is_dir() and entry.name not in keep:
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name.endswith(".tmp"):
                entry.unlink()


def _read(directory: Path) -> Identity:
    certificate = parse_certificate((directory / CERTIFICATE).read_text("ascii", "replace"))
    authority = parse_certificate((directory / AUTHORITY).read_text("ascii", "replace"))
    if spki_der(load_key(directory / KEY)) != spki_der(certificate):
        raise IdentityError("its key and certificate do not belong together")
    return Identity(directory, certificate, authority)
