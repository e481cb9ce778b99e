"""Who a device is and whom it trusts: keys, device ids, certificates, join tokens, and TLS made of them."""

from __future__ import annotations

from edgekit.identity.authority import (
    Authority,
    certificate_text,
    device_id_of,
    issued_by,
    parse_certificate,
)
from edgekit.identity.csr import make_csr, read_csr
from edgekit.identity.device_id import device_id, parse_device_id, short_id
from edgekit.identity.errors import IdentityError
from edgekit.identity.keys import (
    fingerprint,
    generate_key,
    load_key,
    load_or_create_key,
    save_key,
    spki_der,
    spki_hex,
)
from edgekit.identity.store import Identity, IdentityStore
from edgekit.identity.tls import client_context, peer_device_id, pinned_context, server_context
from edgekit.identity.tokens import JoinToken, check_secret, hash_secret, new_token, parse_token

__all__ = [
    "Authority",
    "Identity",
    "IdentityError",
    "IdentityStore",
    "JoinToken",
    "certificate_text",
    "check_secret",
    "client_context",
    "device_id",
    "device_id_of",
    "fingerprint",
    "generate_key",
    "hash_secret",
    "issued_by",
    "load_key",
    "load_or_create_key",
    "make_csr",
    "new_token",
    "parse_certificate",
    "parse_device_id",
    "parse_token",
    "peer_device_id",
    "pinned_context",
    "read_csr",
    "save_key",
    "server_context",
    "short_id",
    "spki_der",
    "spki_hex",
]
