"""The routes that a device needs to become one and to stay one: authority, enrolment, renewal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from aiohttp import web

from cloudd.config import MAX_NAME
from cloudd.devices.fleet import Fleet
from cloudd.devices.invites import Invites
from cloudd.web import DEVICE_ID, HttpProblem, json_response, read_json
from edgekit.identity import Authority, IdentityError, device_id, device_id_of, parse_certificate, read_csr
from edgekit.messages import PROTOCOL, AuthorityInfo, Certificate, EnrollRequest, RenewRequest
from edgekit.webguard import TryLimiter

log = logging.getLogger("cloudd.devices")

_MAX_REQUEST = 16_384


def routes(
    authority: Authority,
    invites: Invites,
    fleet: Fleet,
    name: str,
    limiter: TryLimiter,
    wall: Callable[[], float] = time.time,
) -> list[web.RouteDef]:
    """Routes to mount on the device API. `limiter` counts failed enrolments per address, `wall` is the clock."""

    async def health(_request: web.Request) -> web.Response:
        return json_response({"protocol": PROTOCOL, "name": name})

    async def show_authority(_request: web.Request) -> web.Response:
        return json_response(
            AuthorityInfo(
                protocol=PROTOCOL,
                name=name,
                certificate_pem=authority.certificate_pem,
                fingerprint=authority.fingerprint,
            )
        )

    async def enroll(request: web.Request) -> web.Response:
        peer = request.remote or ""
        wait = limiter.take(peer)
        if wait > 0.0:
            raise HttpProblem(429, f"too many failed attempts to join; try again in {wait:.0f} seconds", wait)
        asked = await read_json(request, EnrollRequest, _MAX_REQUEST)
        _check_protocol(asked.protocol)
        await invites.check(asked.token_id, asked.secret, wall())
        limiter.forgive(peer)  # whoever holds a token does not guess; what else is wrong may be tried again
        certificate, serial, device = _issue(authority, asked.csr_pem, wall())
        await invites.redeem(asked.token_id, device, clean_name(asked.name), serial, certificate.not_after, wall())
        log.info("device %s (%s) joined from %s", device, clean_name(asked.name), peer)
        return json_response(certificate)

    async def renew(request: web.Request) -> web.Response:
        present = request[DEVICE_ID]
        asked = await read_json(request, RenewRequest, _MAX_REQUEST)
        certificate, serial, device = _issue(authority, asked.csr_pem, wall())
        if device != present:
            raise HttpProblem(403, "the certificate request carries another key than the certificate in use")
        await fleet.renewed(device, serial, certificate.not_after, wall())
        return json_response(certificate)

    return [
        web.get("/v1/health", health),
        web.get("/v1/authority", show_authority),
        web.post("/v1/enroll", enroll),
        web.post("/v1/renew", renew),
    ]


def clean_name(name: str) -> str:
    """A device's name as people may see it: printable, one line, at most 64 characters, never empty."""
    kept = "".join(character if character.isprintable() else " " for character in name[:MAX_NAME])
    return " ".join(kept.split()) or "unnamed"


def _issue(authority: Authority, csr_pem: str, now: float) -> tuple[Certificate, str, str]:
    try:
        device = device_id(read_csr(csr_pem))
        pem, serial = authority.sign_csr(csr_pem, now)
        signed = parse_certificate(pem)
    except IdentityError as error:
        raise HttpProblem(422, str(error)) from None
    if device_id_of(signed) != device:  # the authority signs what it is given; this is the last look before it leaves
        raise HttpProblem(500, "the certificate does not belong to the request")
    answer = Certificate(
        device_id=device,
        certificate_pem=pem,
        authority_pem=authority.certificate_pem,
        not_after=signed.not_valid_after_utc.timestamp(),
    )
    return answer, serial, device


def _check_protocol(spoken: int) -> None:
    if spoken != PROTOCOL:
        raise HttpProblem(
            426, f"the device speaks protocol {spoken}, this cloudd speaks {PROTOCOL}; bring both to the same release"
        )
