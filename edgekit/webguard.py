"""Who may read and who may change a daemon's page: pure checks, shared by edged's status page and cloudd's dashboard.

The page listens on loopback and everybody who reaches it may read it. What keeps a hostile web site in the same browser
out: an allow-list of Host names (DNS rebinding), an Origin that must equal the Host (cross-site requests; also other
ports of the same machine, which share cookies and count as the same site), and no write without the page token.
The token comes as `Authorization: Bearer` (scripts), or once through a login form that is traded for a cookie.
Nothing here knows a web framework: headers go in as a mapping with case-insensitive keys, a Refusal or None comes out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import NamedTuple

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
SESSION_S = 12 * 3600
"""Life of a login in seconds: one shift and its overlap."""

_READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Refusal(NamedTuple):
    """Why a request is not served: HTTP status, a sentence for people, seconds to wait (0 = no point in waiting)."""

    status: int
    text: str
    retry_after_s: float = 0.0


class TryLimiter:
    """At most `limit` tries per peer in any `window_s` seconds. Remembers `max_peers` peers, the oldest leave first.

    IPv6 peers are counted by their /64, because one host owns all of its addresses.
    """

    def __init__(
        self,
        limit: int = 5,
        window_s: float = 60.0,
        max_peers: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._window_s, self._max_peers, self._clock = limit, window_s, max_peers, clock
        self._tries: OrderedDict[str, list[float]] = OrderedDict()

    def wait_s(self, peer: str) -> float:
        """Seconds until this peer may try again; 0.0 if it may now. Records nothing."""
        now, key = self._clock(), peer_key(peer)
        recent = [at for at in self._tries.get(key, ()) if now - at < self._window_s]
        return 0.0 if len(recent) < self._limit else self._window_s - (now - recent[-self._limit])

    def take(self, peer: str) -> float:
        """Record a try and return 0.0, or record nothing and return the seconds to wait."""
        wait = self.wait_s(peer)
        if wait <= 0.0:
            now, key = self._clock(), peer_key(peer)
            recent = [at for at in self._tries.pop(key, ()) if now - at < self._window_s]
            self._tries[key] = [*recent, now]
            while len(self._tries) > self._max_peers:
                self._tries.popitem(last=False)
        return max(wait, 0.0)

    def forgive(self, peer: str) -> None:
        """Take back this peer's newest try: it turned out to be a good one."""
        key = peer_key(peer)
        if tries := self._tries.get(key):
            tries.pop()
            if not tries:
                del self._tries[key]


def peer_key(peer: str) -> str:
    """What one peer is counted by: its IPv4 address, or the /64 of its IPv6 address, all of which one host owns."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def host_name(host: str) -> str:
    """Name or address part of a Host header: lower case, without port, brackets and trailing dot; "" if malformed."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, rest = host[1:].partition("]")
        return name if bracket and (not rest or (rest[0] == ":" and rest[1:].isdigit())) else ""
    name, colon, port = host.partition(":")
    if colon and not port.isdigit():
        return ""
    return name.removesuffix(".")


def host_allowed(host: str | None, allowed: Iterable[str]) -> bool:
    """True if the Host header names one of the allowed hosts (any port: people forward ports)."""
    return bool(host) and host_name(host or "") in {name.lower() for name in allowed}


def origin_allowed(origin: str | None, host: str) -> bool:
    """True if a browser's Origin is the page itself. No Origin at all is no browser's cross-origin request: True."""
    if origin is None:
        return True
    scheme, separator, rest = origin.strip().lower().partition("://")
    return bool(separator) and scheme in {"http", "https"} and rest == host.strip().lower()


def same_secret(given: str, wanted: str) -> bool:
    """Compare two secrets in constant time, whatever characters were sent."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), wanted.encode())


def new_page_token(rng: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """A fresh page token: 32 random bytes as 43 URL-safe characters."""
    return base64.urlsafe_b64encode(rng(32)).rstrip(b"=").decode()


class PageGuard:
    """Decides about every request to one daemon's page.

    `cookie` must differ between daemons, because browsers share cookies between all ports of a host. A session is an
    expiry time and its HMAC under the page token: it survives a restart, and a new token ends every session.
    """

    def __init__(
        self,
        token: str,
        cookie: str,
        hosts: Iterable[str] = LOOPBACK_HOSTS,
        limiter: TryLimiter | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if len(token) < 32:
            raise ValueError("a page token must have at least 32 characters")
        self.cookie = cookie
        self._token = token
        self._hosts = frozenset(name.lower() for name in hosts)
        self._limiter = limiter or TryLimiter()
        self._wall = wall

    def check(self, method: str, headers: Mapping[str, str], peer: str) -> Refusal | None:
        """None if the request may go on. Reads need a known Host, writes also the right Origin and token or session."""
        refusal = self.check_source(method, headers)
        if refusal is not None or method.upper() in _READING:
            return refusal
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.login(given.strip(), peer)
        if self.logged_in(headers):
            if "Origin" not in headers and headers.get("Sec-Fetch-Site") != "same-origin":
                return Refusal(403, "a write with the login cookie must carry the page's own Origin header")
            return None
        return Refusal(
            401, "this needs the page token: log in on the page, or send it as 'Authorization: Bearer TOKEN'"
        )

    def check_source(self, method: str, headers: Mapping[str, str]) -> Refusal | None:
        """The part that needs no secret: Host for every request; Origin and Sec-Fetch-Site for every write."""
        host = headers.get("Host", "")
        if not host_allowed(host, self._hosts):
            return Refusal(403, f"this page is not served under the name {host_name(host)[:80] or '(none)'!r}")
        if method.upper() in _READING:
            return None
        if not origin_allowed(headers.get("Origin"), host):
            return Refusal(403, "a page of another origin may not change anything here")
        if headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            return Refusal(403, "another site may not change anything here")
        return None

    def login(self, given: str, peer: str) -> Refusal | None:
        """Check a page token. Five wrong ones in a minute from one peer, and it has to wait."""
        wait = self._limiter.take(peer)
        if wait > 0.0:
            return Refusal(429, f"too many wrong tokens; try again in {wait:.0f} seconds", wait)
        if not same_secret(given, self._token):
            return Refusal(
                401, "the page token is wrong; it is in the file 'page-token' of the daemon's state directory"
            )
        self._limiter.forgive(peer)
        return None

    def session_cookie(self, secure: bool = False) -> str:
        """Value of the Set-Cookie header of a successful login."""
        expires = str(int(self._wall()) + SESSION_S)
        attributes = f"Path=/; Max-Age={SESSION_S}; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"
        return f"{self.cookie}={expires}.{self._seal(expires)}; {attributes}"

    def logout_cookie(self) -> str:
        """Value of the Set-Cookie header that ends the session in this browser."""
        return f"{self.cookie}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"

    def logged_in(self, headers: Mapping[str, str]) -> bool:
        """True if the request carries a session cookie of ours that has not expired."""
        try:
            morsel = SimpleCookie(headers.get("Cookie", "")[:4096]).get(self.cookie)
        except CookieError:
            return False
        expires, _, seal = (morsel.value if morsel else "").partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            return False
        return same_secret(seal, self._seal(expires)) and self._wall() < int(expires) <= self._wall() + SESSION_S

    def _seal(self, expires: str) -> str:
        return hmac.new(
            self._token.encode(), f"{self.cookie} session until {expires}".encode(), hashlib.sha256
        ).hexdigest()


def security_headers(styles: Iterable[str] = (), scripts: Iterable[str] = ()) -> dict[str, str]:
    """Headers of every reply of a page.

    `styles` and `scripts` are the exact texts inside the page's own <style> and <script> elements: constants of the
    page module, never taken from rendered HTML, so that an injected element has no matching hash and does not run.
    Inline `style=""` and `onclick=""` attributes are refused by the browser too: use classes and addEventListener.
    The referrer policy is `same-origin`, because under `no-referrer` browsers send `Origin: null` with a form.
    """
    policy = [
        "default-src 'none'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        _sources("style-src", styles),
        _sources("script-src", scripts),
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-store",
    }


def _sources(directive: str, texts: Iterable[str]) -> str:
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
    return " ".join([directive, *(hashes or ["'none'"])])
