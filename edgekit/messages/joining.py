"""How a device becomes one of a cloudd's."""

from __future__ import annotations

from edgekit.messages.base import Message


class AuthorityInfo(Message, frozen=True, kw_only=True):
    """Reply of `GET /v1/authority`, the only thing cloudd tells a stranger."""

    protocol: int
    name: str
    certificate_pem: str
    fingerprint: str  # base64url SHA-256 of the authority's SubjectPublicKeyInfo


class EnrollRequest(Message, frozen=True, kw_only=True):
    """`POST /v1/enroll`, sent only inside TLS that verified the authority pinned by the token."""

    protocol: int
    token_id: str
    secret: str
    csr_pem: str
    name: str  # what people call the device


class RenewRequest(Message, frozen=True, kw_only=True):
    """`POST /v1/renew`, authenticated by the present certificate."""

    csr_pem: str


class Certificate(Message, frozen=True, kw_only=True):
    """Reply of enroll and renew."""

    device_id: str
    certificate_pem: str
    authority_pem: str
    not_after: float
