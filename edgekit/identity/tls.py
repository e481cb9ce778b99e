"""TLS as both sides use it: one pinned authority, no other root, no host names.

Host names are not checked, because a device knows its cloudd by the authority's key and not by an address: addresses
roam, come from mDNS hints or are plain IPs. In their place stands a stronger rule: the peer must hold a certificate
that the pinned authority itself issued *for a server*. OpenSSL checks that purpose in the handshake, so that no
enrolled device can pose as cloudd with its own certificate. The client's certificate leaves only after the server's
was verified.
"""

from __future__ import annotations

import functools
import ssl
import time
from pathlib import Path

from cryptography import x509

from edgekit.identity.authority import certificate_text, device_id_of, parse_certificate
from edgekit.identity.errors import IdentityError

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which the ssl module has no name for."""


def client_context(
    authority_pem_path: Path,
    cert_path: Path | None = None,
    key_path: Path | None = None,
    now: float | None = None,
) -> ssl.SSLContext:
    """A client that trusts servers of one authority, with its own certificate if both paths are given.

    `now` (seconds since the epoch, default the wall clock) only serves to notice a clock that is surely wrong, see
    `pinned_context`. Raises OSError or IdentityError.
    """
    context = pinned_context(authority_pem_path.read_text("ascii", "replace"), now)
    if cert_path is not None and key_path is not None:
        try:
            context.load_cert_chain(cert_path, key_path)
        except ssl.SSLError as error:
            raise IdentityError(f"{cert_path} and {key_path} are not a usable certificate and key ({error})") from error
    return context


def pinned_context(authority_pem: str, now: float | None = None) -> ssl.SSLContext:
    """A client without a certificate that trusts servers of the authority given as PEM. Raises IdentityError.

    A board without a battery-backed clock wakes up in 1970. A clock that shows a time before the pinned authority
    itself was made is certainly wrong, and dates are then left unchecked rather than the device locked out.
    """
    certificate = parse_certificate(authority_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        # What was parsed (and compared with the pin), not the text: OpenSSL would trust whatever else stands in it.
        context.load_verify_locations(cadata=certificate_text(certificate))
    except ssl.SSLError as error:
        raise IdentityError(f"the authority's certificate cannot be used ({error})") from error
    if (time.time() if now is None else now) < certificate.not_valid_before_utc.timestamp():
        context.verify_flags |= _NO_CHECK_TIME
    return context


def server_context(cert_path: Path, key_path: Path, authority_pem_path: Path) -> ssl.SSLContext:
    """cloudd's side: asks for a client certificate of the authority, and serves strangers without one.

    Dates of client certificates are not checked in the handshake but by `peer_device_id`, so that a device that was
    offline for longer than its certificate lived can still renew it. Raises OSError or IdentityError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= _NO_CHECK_TIME
    try:
        context.load_cert_chain(cert_path, key_path)
        context.load_verify_locations(cafile=authority_pem_path)
    except ssl.SSLError as error:
        raise IdentityError(f"the server's certificate, key or authority cannot be used ({error})") from error
    return context


def peer_device_id(
    ssl_object: ssl.SSLObject | ssl.SSLSocket | None, now: float | None = None, allow_expired: bool = False
) -> str | None:
    """The id of the device at the other end, None for a stranger (no TLS, no certificate, or an expired one).

    The handshake has verified authority and purpose. `allow_expired` is for the renewal of a certificate and for
    nothing else. `now` is seconds since the epoch, default the wall clock.
    """
    der = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    if not der:
        return None
    identity, not_after = _leaf(der)
    if not allow_expired and (time.time() if now is None else now) > not_after:
        return None
    return identity


@functools.lru_cache(maxsize=4096)  # the same certificate comes with every request of a kept-alive connection
def _leaf(der: bytes) -> tuple[str | None, float]:
    certificate = x509.load_der_x509_certificate(der)
    try:
        return device_id_of(certificate), certificate.not_valid_after_utc.timestamp()
    except IdentityError:
        return None, 0.0
