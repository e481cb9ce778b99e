"""The dashboard of a real cloudd: live numbers, pictures with both verdicts, metrics, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from cloudd.dashboard.state import DashboardState
from edgekit.messages import Answer, HardSample, Verdict
from tests.support.cloud import Cloud, FakeDevice, ask
from tests.support.models import make_package, picture


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")) as running:
        yield running


@pytest.fixture
async def browser(cloud: Cloud) -> AsyncIterator[aiohttp.ClientSession]:
    jar = aiohttp.CookieJar(unsafe=True)  # unsafe: cookies for an IP address, as browsers take them
    async with aiohttp.ClientSession(cloud.page, cookie_jar=jar) as session:
        yield session


def token(cloud: Cloud) -> str:
    return (cloud.state / "page-token").read_text().strip()


def bearer(cloud: Cloud) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(cloud)}"}


async def state(browser: aiohttp.ClientSession) -> DashboardState:
    async with browser.get("/state.json") as reply:
        return msgspec.json.decode(await reply.read(), type=DashboardState)


async def test_a_hard_sample_is_shown_with_both_verdicts_and_its_picture(
    cloud: Cloud, browser: aiohttp.ClientSession, tmp_path: Path
) -> None:
    make_package(tmp_path / "model", "large", "1")
    assert cloud.admin.post("/models", {"path": str(tmp_path / "model")})["name"] == "large"
    device = FakeDevice(tmp_path / "device", name="press <4>")
    await device.enroll(cloud, cloud.invite())
    edge = Verdict(label="<i>wrong</i>", score=0.4, margin=0.1, model="small@1")
    sample = HardSample(
        sample_id="s-1", service="solder", answer_model="large", edge=edge, reason="hard", captured_at=time.time()
    )
    reply = await ask(device, cloud, sample, picture(0.5))
    answer = msgspec.json.decode(reply.body, type=Answer)
    assert reply.status == 200

    shown = await state(browser)
    (view,) = shown.samples
    assert (view.device, view.edge, view.cloud, view.agree) == ("press <4>", edge, answer.verdict, False)
    assert shown.totals.answered == 1 and shown.totals.agreed == 0 and shown.totals.devices == 1
    assert [(model.name, model.version) for model in shown.models] == [("large", "1")]
    async with browser.get(view.thumbnail) as thumbnail:
        assert thumbnail.status == 200 and thumbnail.content_type == "image/jpeg"
        assert (await thumbnail.read()).startswith(b"\xff\xd8")
        assert thumbnail.headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in thumbnail.headers
    async with browser.get("/") as reply_page:
        page = await reply_page.text()
        policy = reply_page.headers["Content-Security-Policy"]
    assert "press &lt;4&gt;" in page and view.thumbnail in page and answer.verdict.label in page
    assert "<i>wrong" not in page
    assert "default-src 'none'" in policy and "unsafe" not in policy

    # What the admin socket says about the same answer.
    assert cloud.admin.get("/answers?limit=5")[0]["sample_id"] == "s-1"
    assert cloud.admin.get(f"/answers/{view.id}")["cloud"]["label"] == answer.verdict.label
    assert cloud.admin.request("GET", f"/answers/{view.id}/picture") == picture(0.5)


async def test_metrics_are_prometheus_text(cloud: Cloud, browser: aiohttp.ClientSession) -> None:
    async with browser.get("/metrics") as reply:
        text = await reply.text()
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert values['cloudd_info{version="0.1.0"}'] == 1
    assert values["process_resident_memory_bytes"] > 1e7
    assert "cloudd_devices" in values and "cloudd_answers_total" in values


@pytest.mark.parametrize("route", ["/", "/state.json", "/metrics", "/samples/1.jpg"])
async def test_dns_rebinding_reads_nothing(browser: aiohttp.ClientSession, route: str) -> None:
    async with browser.get(route, headers={"Host": "evil.example:8441"}) as reply:
        assert reply.status == 403
        assert "evil.example" in (await reply.json())["error"]


@pytest.mark.parametrize(
    ("route", "status"),
    [("/nothing", 404), ("/samples/999.jpg", 404), ("/samples/..%2f..%2fcloudd.db.jpg", 404), ("/api/invites", 405)],
)
async def test_reads_of_what_is_not_there(browser: aiohttp.ClientSession, route: str, status: int) -> None:
    async with browser.get(route) as reply:
        assert reply.status == status
        assert (await reply.json())["error"]


async def test_no_write_without_the_token(cloud: Cloud, browser: aiohttp.ClientSession) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Origin": cloud.page}, {"Cookie": "cloudd-session=1.x"}):
        async with browser.post("/api/invites", json={}, headers=headers) as reply:
            assert reply.status == 401, headers


async def test_no_write_from_another_origin(cloud: Cloud, browser: aiohttp.ClientSession) -> None:
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        async with browser.post("/api/invites", json={}, headers={**bearer(cloud), "Origin": origin}) as reply:
            assert reply.status == 403
        async with browser.post("/login", data={"token": token(cloud)}, headers={"Origin": origin}) as reply:
            assert reply.status == 403 and "Set-Cookie" not in reply.headers


async def test_writes_with_the_token(cloud: Cloud, browser: aiohttp.ClientSession, tmp_path: Path) -> None:
    async with browser.post("/api/invites", json={"name": "x", "ttl_s": 60}, headers=bearer(cloud)) as reply:
        made = await reply.json()
        assert reply.status == 200 and made["command"].startswith("edged join edg1.")
    async with browser.post("/api/invites", json={"ttl_s": -1}, headers=bearer(cloud)) as reply:
        assert reply.status == 400 and "ttl_s" in (await reply.json())["error"]
    async with browser.post("/api/devices/nobody/revoke", headers=bearer(cloud)) as reply:
        assert reply.status == 404


async def test_the_login_form_and_the_buttons(cloud: Cloud, browser: aiohttp.ClientSession, tmp_path: Path) -> None:
    device = FakeDevice(tmp_path / "device", name="to be revoked")
    await device.enroll(cloud, cloud.invite())
    own = {"Origin": cloud.page}
    assert not (await state(browser)).logged_in
    async with browser.post("/login", data={"token": "wrong"}, headers=own) as reply:
        assert reply.status == 401 and "page-token" in await reply.text()
    async with browser.post("/login", data={"token": token(cloud)}, headers=own, allow_redirects=False) as reply:
        assert reply.status == 303
        assert "HttpOnly" in reply.headers["Set-Cookie"] and "SameSite=Strict" in reply.headers["Set-Cookie"]
    assert (await state(browser)).logged_in
    async with browser.post("/api/invites", data={}, headers=own) as reply:
        assert "edged join edg1." in await reply.text()
    form = {"Content-Type": "application/x-www-form-urlencoded", **own}
    async with browser.post(f"/api/devices/{device.id}/revoke", headers=form) as reply:
        assert reply.status == 200 and "to be revoked" in await reply.text()  # back on the page
    assert (await device.send(cloud, "GET", "/v1/models/x")).status == 403
    async with browser.post("/api/devices/nobody/revoke", headers=form) as reply:
        assert reply.status == 404 and reply.content_type == "text/html"
    async with browser.post("/api/invites", data={}, headers={"Origin": "http://127.0.0.1:1"}) as reply:
        assert reply.status == 403  # the cookie alone is not enough for another origin
    async with browser.post("/logout", headers=form) as reply:
        assert reply.status == 200
    assert not (await state(browser)).logged_in


async def test_large_bodies_are_refused(cloud: Cloud, browser: aiohttp.ClientSession) -> None:
    async with browser.post("/login", data=b"token=" + b"x" * 10_000, headers={"Origin": cloud.page}) as reply:
        assert reply.status == 413
    async with browser.post("/api/invites", data=b"[" * 2_000_000, headers=bearer(cloud)) as reply:
        assert reply.status == 413
