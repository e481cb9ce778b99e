"""Renewing the device's certificate long before it ends. Nothing local ever waits for it or stops because of it."""

from __future__ import annotations

from edged.link.enroll import check_issued
from edged.link.errors import WrongAuthority
from edged.link.http import call, open_session
from edgekit.identity import Identity, IdentityError, IdentityStore, client_context, make_csr
from edgekit.messages import Certificate, Level, RenewRequest

JITTER = 0.05
"""Share of the lifetime by which renewals spread, so that a plant that was set up in one hour does not renew in one."""


def renewal_time(not_before: float, not_after: float, u: float) -> float:
    """When to renew, in seconds since the epoch: at two thirds of the lifetime, up to 5 % of it earlier.

    `u` in [0, 1) is the jitter.
    """
    lifetime = not_after - not_before
    return not_before + lifetime * (2.0 / 3.0 - JITTER * u)


def unrenewed(left_s: float, error: Exception) -> tuple[Level, str, str]:
    """What the health list says of a certificate that could not be renewed; `left_s`: seconds until its end."""
    level: Level = "warning" if left_s > 0 else "error"
    when = f"ends in {left_s / 86_400:.1f} days" if left_s > 0 else "has ended"
    return level, "certificate", f"the device's certificate {when} and cannot be renewed: {error}; local work goes on"


async def renew(url: str, identity: Identity, store: IdentityStore, timeout_s: float = 10.0) -> Certificate:
    """Ask for a new certificate with the present one, which may have expired; the caller stores it.

    Raises Unreachable, WrongAuthority or Refused.
    """
    context = client_context(identity.authority_path, identity.certificate_path, identity.key_path)
    async with open_session(context) as session:
        request = RenewRequest(csr_pem=make_csr(store.key))
        certificate = await call(session, url, "/v1/renew", Certificate, request, timeout_s=timeout_s)
    try:
        check_issued(certificate, store, identity.authority_fingerprint)
    except IdentityError as error:
        raise WrongAuthority(f"cloudd at {url} sent a certificate that cannot be used: {error}") from error
    return certificate
