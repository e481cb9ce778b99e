"""Joining: from a token and an address that anybody may have forged to a certificate of the right authority.

Two connections. The first trusts nobody and sends nothing but `GET /v1/authority`; the certificate that comes back is
compared with the fingerprint in the token. The second pins that certificate: the handshake proves that the server was
certified by the authority's key, and only then do the secret and the certificate request leave the device.
"""

from __future__ import annotations

import hmac

from edged.link.errors import Refused, Unreachable, WrongAuthority
from edged.link.http import call, open_session, stranger_context
from edgekit.identity import (
    IdentityError,
    IdentityStore,
    JoinToken,
    fingerprint,
    make_csr,
    parse_certificate,
    pinned_context,
)
from edgekit.messages import PROTOCOL, AuthorityInfo, Certificate, EnrollRequest


async def fetch_authority(url: str, pin: str, timeout_s: float = 5.0) -> AuthorityInfo:
    """What the server says of itself, if its authority has the fingerprint `pin`; it still has to prove it.

    Raises Unreachable or WrongAuthority.
    """
    try:
        async with open_session(stranger_context()) as session:
            info = await call(session, url, "/v1/authority", AuthorityInfo, timeout_s=timeout_s)
        found = fingerprint(parse_certificate(info.certificate_pem))
    except Refused as error:  # a stranger's no is no reason to stop looking
        raise Unreachable(str(error)) from error
    except IdentityError as error:
        raise WrongAuthority(f"{url}: {error}") from error
    if not hmac.compare_digest(found.encode(), pin.encode()):
        raise WrongAuthority(f"the server at {url} is another cloudd than the one that made the token")
    if info.protocol != PROTOCOL:
        # Not proved yet, so no reason to stop looking either: the next address may be the real one.
        raise Unreachable(
            f"cloudd at {url} speaks protocol {info.protocol}, this edged speaks {PROTOCOL}; "
            "bring both to the same release"
        )
    return info


async def enroll(url: str, token: JoinToken, store: IdentityStore, name: str, timeout_s: float = 5.0) -> Certificate:
    """Ask the cloudd at `url` for a certificate; the caller stores it.

    Raises Unreachable or WrongAuthority (try another address), Refused (the token is bad, used or expired).
    """
    info = await fetch_authority(url, token.fingerprint, timeout_s)
    request = EnrollRequest(
        protocol=PROTOCOL, token_id=token.token_id, secret=token.secret, csr_pem=make_csr(store.key), name=name
    )
    try:
        async with open_session(pinned_context(info.certificate_pem)) as session:
            # Longer than a question: the answer is lost if we do not wait for it, and the token works only once.
            certificate = await call(session, url, "/v1/enroll", Certificate, request, timeout_s=6 * timeout_s)
        check_issued(certificate, store, token.fingerprint)
    except IdentityError as error:
        raise WrongAuthority(f"cloudd at {url} sent a certificate that cannot be used: {error}") from error
    return certificate


def check_issued(certificate: Certificate, store: IdentityStore, pin: str) -> None:
    """That a reply is for this device and from the pinned authority. Raises IdentityError."""
    if fingerprint(parse_certificate(certificate.authority_pem)) != pin:
        raise IdentityError("it names another authority than the pinned one")
    if certificate.device_id != store.device_id:
        raise IdentityError("it is for another device")
