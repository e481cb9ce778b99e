"""Addresses of cloudd as people and DNS-SD records give them."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from edged.link.errors import LinkError

DEFAULT_PORT = 8440
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")


def cloud_url(text: str) -> str:
    """`https://host:port` for a host, host:port or https URL; the default port is 8440. Raises LinkError."""
    plain = text.strip()
    help_text = (
        f"{text[:100]!r} is no address of a cloudd; write a host name or address like cloudd.plant:{DEFAULT_PORT}"
    )
    if "://" not in plain:
        plain = f"https://{plain}"
    try:
        parts = urlsplit(plain)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise LinkError(f"{help_text} ({error})") from None
    if parts.scheme != "https":
        raise LinkError(f"{help_text}; cloudd speaks only https")
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
        raise LinkError(f"{help_text}, without a path or password")
    try:
        return host_url(str(ipaddress.ip_address(host)), port or DEFAULT_PORT)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise LinkError(help_text) from None
    return host_url(host, port or DEFAULT_PORT)


def host_url(host: str, port: int) -> str:
    """`https://host:port`, with the brackets that an IPv6 address needs."""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
