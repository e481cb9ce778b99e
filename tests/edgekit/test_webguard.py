"""Who may read and change a page: every check with the request that it is there to stop."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from edgekit.webguard import (
    LOOPBACK_HOSTS,
    PageGuard,
    TryLimiter,
    host_allowed,
    host_name,
    new_page_token,
    origin_allowed,
    same_secret,
    security_headers,
)

TOKEN = "t" * 43
HOST = "127.0.0.1:8441"
PAGE = f"http://{HOST}"


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(clock: Clock) -> PageGuard:
    return PageGuard(TOKEN, "cloudd-session", limiter=TryLimiter(clock=clock), wall=clock)


def request(**headers: str) -> CIMultiDict[str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CIMultiDict({"Host": HOST, **named})


def cookie(guard: PageGuard) -> str:
    return guard.session_cookie().split(";")[0]


def status(guard: PageGuard, method: str, headers: CIMultiDict[str]) -> int:
    refusal = guard.check(method, headers, "127.0.0.1")
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:8441", "[::1]:8441", "[::1]", "localhost."])
def test_hosts_that_are_this_machine(host: str) -> None:
    assert host_allowed(host, LOOPBACK_HOSTS)


@pytest.mark.parametrize(
    "host",
    [None, "", "evil.example", "evil.example:8441", "127.0.0.1.evil.example", "127.0.0.1:x", "[::1", "[::1]x", "::1"],
)
def test_dns_rebinding(host: str | None) -> None:
    assert not host_allowed(host, LOOPBACK_HOSTS)


@pytest.mark.parametrize("host", ["localhost:80:80", "evil@127.0.0.1", "127.0.0.2", "localhost/", "localhost\x00"])
def test_malformed_hosts(host: str) -> None:
    assert not host_allowed(host, LOOPBACK_HOSTS)


@given(st.text(max_size=60))
def test_any_host_text_is_judged_without_an_error(text: str) -> None:
    assert host_allowed(text, LOOPBACK_HOSTS) == (host_name(text) in LOOPBACK_HOSTS)


def test_origins() -> None:
    assert origin_allowed(None, HOST)
    assert origin_allowed(PAGE, HOST)
    assert origin_allowed(PAGE.upper().replace("HTTP", "http"), HOST)
    for foreign in [
        "null",
        "",
        "http://evil.example",
        f"{PAGE}.evil.example",
        "http://127.0.0.1:9999",
        f"file://{HOST}",
    ]:
        assert not origin_allowed(foreign, HOST), foreign


def test_reading_needs_only_a_known_host(guard: PageGuard) -> None:
    assert status(guard, "GET", request()) == 200
    assert status(guard, "GET", request(Host="evil.example:8441")) == 403
    assert status(guard, "GET", CIMultiDict()) == 403


def test_writing_with_the_token(guard: PageGuard) -> None:
    assert status(guard, "POST", request(Authorization=f"Bearer {TOKEN}")) == 200
    assert status(guard, "POST", request(Authorization=f"bearer {TOKEN}", Origin=PAGE)) == 200
    assert status(guard, "POST", request(Authorization=f"Bearer {TOKEN}", Origin="http://evil.example")) == 403
    assert status(guard, "POST", request(Authorization=f"Bearer {TOKEN}", Sec_Fetch_Site="cross-site")) == 403
    assert status(guard, "POST", request(Authorization=f"Bearer {TOKEN}", Host="evil.example")) == 403
    assert status(guard, "POST", request(Authorization=f"Basic {TOKEN}")) == 401
    assert status(guard, "DELETE", request()) == 401


def test_writing_with_the_cookie_needs_the_pages_own_origin(guard: PageGuard) -> None:
    session = cookie(guard)
    assert status(guard, "POST", request(Cookie=session, Origin=PAGE)) == 200
    assert status(guard, "POST", request(Cookie=session, Sec_Fetch_Site="same-origin")) == 200
    assert status(guard, "POST", request(Cookie=session)) == 403
    # Another port of this machine is the same site for cookies; only the Origin tells it apart.
    assert status(guard, "POST", request(Cookie=session, Origin="http://127.0.0.1:3000")) == 403
    assert status(guard, "POST", request(Cookie=session, Sec_Fetch_Site="same-site")) == 403


def test_sessions_end(guard: PageGuard, clock: Clock) -> None:
    session = cookie(guard)
    assert guard.logged_in(request(Cookie=session))
    clock.now += 12 * 3600 + 1
    assert not guard.logged_in(request(Cookie=session))


def test_sessions_cannot_be_made_up(guard: PageGuard, clock: Clock) -> None:
    session = cookie(guard)
    name, _, value = session.partition("=")
    expires, _, seal = value.partition(".")
    forged = [
        f"{name}={int(expires) + 9}.{seal}",
        f"{name}={expires}.{'0' * 64}",
        f"{name}={expires}",
        f"{name}=.",
        "x",
    ]
    forged += [f"other={value}", f"{name}=²³.{seal}", f"{name}=" + "9" * 400 + f".{seal}"]
    assert not any(guard.logged_in(request(Cookie=text)) for text in forged)
    other = PageGuard("u" * 43, "cloudd-session", wall=clock)  # a new token ends every session
    assert not other.logged_in(request(Cookie=session))
    twin = PageGuard(TOKEN, "edged-session", wall=clock)  # a cookie of the other daemon is not one of ours
    assert not twin.logged_in(request(Cookie=f"edged-session={value}"))


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(guard: PageGuard) -> None:
    made = guard.session_cookie()
    assert "HttpOnly" in made and "SameSite=Strict" in made and "Secure" not in made
    assert "Secure" in guard.session_cookie(secure=True)
    assert TOKEN not in made
    assert "Max-Age=0" in guard.logout_cookie()


def test_wrong_tokens_are_counted_right_ones_are_not(guard: PageGuard, clock: Clock) -> None:
    for _ in range(20):
        assert guard.login(TOKEN, "127.0.0.1") is None
    for _ in range(5):
        refusal = guard.login("wrong", "127.0.0.1")
        assert refusal is not None and refusal.status == 401
    shut = guard.login(TOKEN, "127.0.0.1")
    assert shut is not None and shut.status == 429 and 0 < shut.retry_after_s <= 60
    assert guard.login(TOKEN, "127.0.0.2") is None
    clock.now += 60.1
    assert guard.login(TOKEN, "127.0.0.1") is None


def test_limiter_counts_a_sliding_window(clock: Clock) -> None:
    limiter = TryLimiter(limit=2, window_s=10.0, clock=clock)
    assert limiter.take("a") == 0.0
    clock.now += 6
    assert limiter.take("a") == 0.0
    assert limiter.take("a") == pytest.approx(4.0)
    clock.now += 4.1
    assert limiter.take("a") == 0.0
    assert limiter.take("a") == pytest.approx(5.9)


def test_one_ipv6_host_is_one_peer(clock: Clock) -> None:
    limiter = TryLimiter(limit=1, clock=clock)
    assert limiter.take("2001:db8::1") == 0.0
    assert limiter.take("2001:db8::ffff:1") > 0.0
    assert limiter.take("2001:db8:0:1::1") == 0.0
    assert limiter.take("::ffff:10.0.0.1") == 0.0
    assert limiter.take("10.0.0.1") > 0.0
    assert limiter.take("fe80::1%eth0") == 0.0


def test_limiter_memory_is_bounded(clock: Clock) -> None:
    limiter = TryLimiter(limit=1, max_peers=100, clock=clock)
    for number in range(1000):
        limiter.take(f"peer {number}")
    assert limiter.wait_s("peer 0") == 0.0
    assert limiter.wait_s("peer 999") > 0.0


def test_secrets() -> None:
    assert same_secret(TOKEN, TOKEN)
    assert not same_secret("é\udcff", TOKEN)
    assert len({new_page_token() for _ in range(50)}) == 50 and len(new_page_token()) == 43
    with pytest.raises(ValueError, match="32"):
        PageGuard("short", "cookie")


def test_only_the_pages_own_elements_run() -> None:
    headers = security_headers(["body{}"], ["alert(1)"])
    policy = headers["Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(b"alert(1)").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert "script-src 'none'" in security_headers()["Content-Security-Policy"]
