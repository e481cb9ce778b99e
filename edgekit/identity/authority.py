"""cloudd's own certificate authority.

One level: a 10-year root signs 30-day device certificates and the server's own. An intermediate would let the root go
offline, but a plant has one cloudd and no second safe place to keep a root; the pin in every token is the root's key,
so an intermediate can be added later without a device noticing.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.atomic import write_file
from edgekit.identity.csr import read_csr
from edgekit.identity.device_id import device_id
from edgekit.identity.errors import IdentityError
from edgekit.identity.keys import fingerprint, generate_key, load_key, save_key, spki_der

DAY: Final = 86_400.0
DEVICE_LIFETIME: Final = 30 * DAY
"""Seconds. Short, because revocation is a list that only cloudd knows; long enough for a plant's summer shutdown."""
BACKDATE: Final = DAY
"""Seconds. A day: clocks on factory floors are wrong by hours (a time zone) more often than by minutes."""
SERVER_LIFETIME: Final = 365 * DAY
ROOT_LIFETIME: Final = 3_652 * DAY
_KEY_FILE = "root-key.pem"
_CERTIFICATE_FILE = "root.pem"
_MAX_PEM = 16_384


class Authority:
    """A root key with its certificate, and what they sign."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        """Raises IdentityError if the certificate belongs to another key."""
        if spki_der(key) != spki_der(certificate):
            raise IdentityError("the authority's key and certificate do not belong together")
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, name: str, now: float) -> Authority:
        """A new authority, valid from a day before `now` (seconds since the epoch) for ten years."""
        key = generate_key()
        subject = _name(f"{name} authority")
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(now - BACKDATE))
            .not_valid_after(_time(now + ROOT_LIFETIME))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Read what `save` wrote. Raises OSError or IdentityError."""
        certificate_file = directory / _CERTIFICATE_FILE
        return cls(load_key(directory / _KEY_FILE), parse_certificate(certificate_file.read_text("ascii", "replace")))

    @classmethod
    def open(cls, directory: Path, name: str, now: float) -> Authority:
        """Load the authority, or create and save it if the directory holds none. Raises OSError or IdentityError.

        The certificate is written last: a key without one has never signed anything and may be replaced. A certificate
        without its key is an error, because every device pins it.
        """
        if (directory / _CERTIFICATE_FILE).exists():
            return cls.load(directory)
        authority = cls.create(name, now)
        authority.save(directory)
        return authority

    def save(self, directory: Path) -> None:
        """Write key (0600) and certificate, the certificate last. Raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        save_key(self._key, directory / _KEY_FILE)
        write_file(directory / _CERTIFICATE_FILE, self.certificate_pem.encode(), 0o644)

    @property
    def certificate_pem(self) -> str:
        """The root certificate, which is no secret."""
        return certificate_text(self.certificate)

    @property
    def fingerprint(self) -> str:
        """What a join token pins."""
        return fingerprint(self.certificate)

    def sign_csr(
        self, csr_pem: str, now: float, lifetime: float = DEVICE_LIFETIME, backdate: float = BACKDATE
    ) -> tuple[str, str]:
        """A device certificate for the key in the request; returns (certificate PEM, serial number in hex).

        Times are seconds. The subject is the device id of the key, the purpose is TLS client; subject and extensions
        of the request are ignored. Raises IdentityError on a bad, oversized or unsigned request or another kind of key.
        """
        public = read_csr(csr_pem)
        builder = self._leaf(public, device_id(public), now - backdate, now + lifetime)
        certificate = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True
        ).sign(self._key, hashes.SHA256())
        return certificate_text(certificate), f"{certificate.serial_number:x}"

    def server_certificate(
        self, key: ec.EllipticCurvePrivateKey, names: list[str], now: float, lifetime: float = SERVER_LIFETIME
    ) -> str:
        """A TLS server certificate (PEM) for host names and IP addresses, valid `lifetime` seconds.

        Devices check the purpose and the authority, not the names (addresses roam); browsers and other tools do check
        them. Raises IdentityError if there is no usable name.
        """
        alternatives: list[x509.GeneralName] = []
        for text in dict.fromkeys(names):
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(text)))
            except ValueError:
                try:
                    alternatives.append(x509.DNSName(text))
                except ValueError as error:
                    raise IdentityError(f"{text!r} is neither a host name nor an IP address") from error
        if not alternatives:
            raise IdentityError("a server certificate needs at least one host name or IP address")
        builder = self._leaf(key.public_key(), names[0][:64], now - BACKDATE, now + lifetime)
        certificate = (
            builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate_text(certificate)

    def _leaf(
        self, public: ec.EllipticCurvePublicKey, name: str, not_before: float, not_after: float
    ) -> x509.CertificateBuilder:
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        end = min(_time(not_after), self.certificate.not_valid_after_utc)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_time(not_before))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
        )


def parse_certificate(pem: str) -> x509.Certificate:
    """Exactly one PEM certificate with a P-256 key. Raises IdentityError on anything else.

    A second one behind it is refused: it would be trusted wherever the text is loaded whole, and compared nowhere.
    """
    if len(pem) > _MAX_PEM:
        raise IdentityError(f"the certificate has {len(pem)} characters; {_MAX_PEM} are allowed")
    try:
        certificates = x509.load_pem_x509_certificates(pem.encode())
        certificate = certificates[0]
        public = certificate.public_key()
    except Exception as error:  # the parser has several error types; every one means the same here
        raise IdentityError(f"the certificate cannot be read ({error})") from error
    if len(certificates) != 1:
        raise IdentityError(f"there are {len(certificates)} certificates where one is expected")
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise IdentityError("the certificate carries another kind of key; ECDSA P-256 is needed")
    return certificate


def certificate_text(certificate: x509.Certificate) -> str:
    """The certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def device_id_of(certificate: x509.Certificate) -> str:
    """The device id of the certificate's key (its subject is not asked). Raises IdentityError for other keys."""
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise IdentityError("the certificate carries another kind of key; ECDSA P-256 is needed")
    return device_id(public)


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's key signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except Exception:  # wrong issuer, wrong algorithm, wrong signature: each is a plain no
        return False
    return True


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _time(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(seconds), dt.UTC)


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )
