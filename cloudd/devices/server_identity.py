"""The certificate of the device API: names and addresses of this host, issued anew when they change or it ages."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import ssl
from pathlib import Path

import psutil
from cryptography import x509

from edgekit.atomic import write_file
from edgekit.identity import (
    Authority,
    IdentityError,
    issued_by,
    load_or_create_key,
    parse_certificate,
    server_context,
    spki_der,
)

log = logging.getLogger("cloudd.devices")

_RENEW_AFTER = 2 / 3  # of its life
_MAX_NAMES = 100


class ServerIdentity:
    """Key and certificate in one directory, beside the authority's own files."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        """Makes the server key if there is none. Raises OSError or IdentityError."""
        self._authority = authority
        self._key_path, self._certificate_path = directory / "server-key.pem", directory / "server.pem"
        self._authority_path = directory / "root.pem"
        self._key = load_or_create_key(self._key_path)

    def refresh(self, names: list[str], now: float) -> bool:
        """Issue a new certificate if the present one does not fit (any more); True if it did."""
        if self._fits(names, now):
            return False
        pem = self._authority.server_certificate(self._key, names, now)
        write_file(self._certificate_path, pem.encode(), 0o644)
        log.info("issued a server certificate for %s", ", ".join(names))
        return True

    def context(self) -> ssl.SSLContext:
        """TLS of the device API. Raises OSError or IdentityError."""
        return server_context(self._certificate_path, self._key_path, self._authority_path)

    def reload(self, context: ssl.SSLContext) -> None:
        """Use the present certificate for new connections of a running listener."""
        context.load_cert_chain(self._certificate_path, self._key_path)

    def _fits(self, names: list[str], now: float) -> bool:
        try:
            certificate = parse_certificate(self._certificate_path.read_text("ascii", "replace"))
        except (OSError, IdentityError):
            return False
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        return (
            spki_der(certificate) == spki_der(self._key)
            and issued_by(certificate, self._authority.certificate)
            and begin <= now < begin + (end - begin) * _RENEW_AFTER
            and _names_of(certificate) >= set(names)
        )


def host_names(extra: list[str]) -> list[str]:
    """Names and addresses under which devices may reach this host: host name, interface addresses, `extra`."""
    names = [socket.gethostname(), "localhost", *extra]
    with contextlib.suppress(OSError):
        for addresses in psutil.net_if_addrs().values():
            names += [one.address for one in addresses if one.family in (socket.AF_INET, socket.AF_INET6)]
    usable = [name for name in names if name and "%" not in name and name.isascii()]
    return list(dict.fromkeys(usable))[:_MAX_NAMES]


def reachable_address(listen_host: str) -> str:
    """The one address to show to people: the listening one, or for 0.0.0.0 and :: that of the default route."""
    if not ipaddress.ip_address(listen_host).is_unspecified:
        return listen_host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # a documentation address; connecting a datagram socket sends nothing
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def _names_of(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return set(names.get_values_for_type(x509.DNSName)) | {
        str(address) for address in names.get_values_for_type(x509.IPAddress)
    }
