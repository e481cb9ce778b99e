"""The page port over real HTTP: who may read, who may write, what a hostile site in the same browser gets."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from aiohttp import web
from support.edged import Edged

from edged.api import ApiError, Done
from edged.config import Address
from edged.samples.desk import SampleDesk
from edged.sockets import address_of, listen_tcp
from edged.status import metrics, server
from edged.status.history import Sample
from edged.status.review import Classes
from edged.status.state import (
    Addresses,
    CloudState,
    Health,
    HealthItem,
    Machine,
    ModelState,
    ServiceState,
    StatusState,
    WorkerState,
)
from edged.tokens import secret_token
from edgekit.messages import ServiceReport, SpoolReport
from edgekit.services import Samples

TOKEN = "t" * 43


def example_state() -> StatusState:
    """A state with something in every part, hostile names included."""
    report = ServiceReport(
        name="solder", model="small@1", state="ready", inspected=12, edge=9, cloud=2, degraded=1,
        offload_share=0.25, agreement=0.5, p50_ms=1.5, p99_ms=3.0, gate="certified", labels={'a"\n\\': 3},
        refused=4, waiting=2, last_at=190.0, latency_counts=[0, 9, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        latency_sum_ms=6000.0,
    )  # fmt: skip
    service = ServiceState(
        name="solder", origin="local", model="small", priority="inline", deadline_ms=300, source="http",
        may_leave="raw", hard_samples="risk", answer_model="large", report=report,
    )  # fmt: skip
    return StatusState(
        version="0.1.0", name="<script>alert(1)</script>", device_id="AAAA-BBBB", state_dir="/s", started_at=100.0,
        now=200.0, supervisor_rss=50 << 20,
        health=Health(
            level="warning", verdict="Works, with a warning: x",
            items=[HealthItem(code="link", severity="warning", text="no link", since=150.0)],
        ),
        machine=Machine(hostname="h", temperature_c=41.5),
        addresses=Addresses(inference="127.0.0.1:1", page="127.0.0.1:2", api="/s/run/edged.sock"),
        cloud=CloudState(joined=True, url="https://c:1", up=True, certificate_until=1e9),
        worker=WorkerState(state="ready", pid=7, rss=100 << 20, restarts=2),
        services=[service],
        models=[ModelState(name="small", version="1", digest="d")],
        spool=SpoolReport(items=3, bytes=4096, quota=8192, evicted=1, delivered=5),
    )  # fmt: skip


class Backend:
    """Remembers what was asked of it."""

    def __init__(self, state_dir: Path = Path("/nowhere")) -> None:
        self.done: list[str] = []
        self.samples = SampleDesk(state_dir, lambda: "DEVICE", 0, lambda name: Samples(), lambda event: None)

    async def classes(self) -> Mapping[str, Classes]:
        return {"solder": Classes(labels=["good", "bridge"]), "board": Classes(task="detection", labels=["open"])}

    def status(self) -> StatusState:
        return example_state()

    def history(self) -> tuple[dict[str, list[Sample]], float]:
        return {"solder": [Sample(100.0 + 2 * n, 30.0, 2.0, 9.0 + n) for n in range(5)]}, 110.0

    def recalibrate(self, name: str) -> Done:
        if name != "solder":
            raise ApiError(404, f"there is no service {name!r}")
        self.done.append(f"recalibrate {name}")
        return Done(text="done")

    def purge_spool(self, service: str) -> Done:
        self.done.append(f"purge {service}")
        return Done(text="done")


class Page:
    def __init__(self, backend: Backend, address: Address) -> None:
        self.backend, self.address = backend, address

    async def ask(
        self, method: str, path: str, body: str = "", host: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        import asyncio

        return await asyncio.to_thread(self._ask, method, path, body, host, headers)

    def _ask(
        self, method: str, path: str, body: str, host: str | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.address.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": host or f"127.0.0.1:{self.address.port}", **named}.items():
            connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() if body else None)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        connection.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, text


async def start(backend: Backend, pretend: Address | None = None) -> tuple[Page, web.AppRunner]:
    listener = listen_tcp(Address("127.0.0.1", 0))
    address = address_of(listener)
    app = server.build(backend, TOKEN, pretend or address, ["line3.plant.example"])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return Page(backend, address), runner


@pytest.fixture
async def page():  # type: ignore[no-untyped-def]
    page, runner = await start(Backend())
    yield page
    await runner.cleanup()


FORM = {"Content_Type": "application/x-www-form-urlencoded"}


async def test_reading_is_open_on_loopback_and_every_reply_is_hardened(page: Page) -> None:
    for path in ("/", "/state.json", "/metrics", "/nothing"):
        status, headers, _ = await page.ask("GET", path)
        assert status == (404 if path == "/nothing" else 200)
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


async def test_the_page_runs_exactly_its_own_style_and_script(page: Page) -> None:
    _, headers, html = await page.ask("GET", "/")
    assert "<script>alert(1)" not in html
    allowed = set(re.findall(r"'sha256-([^']+)'", headers["content-security-policy"]))
    used = {
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", html, re.DOTALL)
    }
    assert used == allowed
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", html), "no external asset"


async def test_the_state_is_json_and_decodes_to_itself(page: Page) -> None:
    import msgspec

    _, _, text = await page.ask("GET", "/state.json")
    assert msgspec.json.decode(text, type=StatusState) == example_state()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "[::2]", "a b", "line3.plant.example.x"])
async def test_a_foreign_host_name_gets_nothing(page: Page, host: str) -> None:
    status, _, text = await page.ask("GET", "/state.json", host=host)
    assert status == 403
    assert "device_id" not in text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:99", "[::1]:8701", "LINE3.plant.example"])
async def test_known_host_names_are_served(page: Page, host: str) -> None:
    assert (await page.ask("GET", "/", host=host))[0] == 200


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer ttt"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": "edged-page-1=1.2"},
    ],
)
async def test_no_write_without_the_token(page: Page, credentials: dict[str, str]) -> None:
    status, _, text = await page.ask("POST", "/api/spool/purge", "{}", **credentials)
    assert status == 401
    assert "token" in json.loads(text)["error"]
    assert page.backend.done == []


async def test_the_token_writes(page: Page) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert (await page.ask("POST", "/api/spool/purge", '{"service":"solder"}', **bearer))[0] == 200
    assert (await page.ask("POST", "/api/services/solder/recalibrate", **bearer))[0] == 200
    status, _, text = await page.ask("POST", "/api/services/absent/recalibrate", **bearer)
    assert (status, json.loads(text)["error"]) == (404, "there is no service 'absent'")
    assert (await page.ask("POST", "/api/spool/purge", '{"service":', **bearer))[0] == 400
    assert page.backend.done == ["purge solder", "recalibrate solder"]


async def test_a_login_is_a_strict_cookie_that_writes_from_the_page_only(page: Page) -> None:
    status, headers, _ = await page.ask("POST", "/login", f"token={TOKEN}", **FORM)
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    own = f"http://127.0.0.1:{page.address.port}"
    assert (await page.ask("POST", "/api/spool/purge", "service=a", Origin=own, **FORM, **session))[0] == 303
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{page.address.port + 1}"):
        assert (await page.ask("POST", "/api/spool/purge", "service=b", Origin=origin, **FORM, **session))[0] == 403
    assert (await page.ask("POST", "/api/spool/purge", "service=c", **FORM, **session))[0] == 403, "no Origin at all"
    assert page.backend.done == ["purge a"]


async def test_five_wrong_tokens_a_minute(page: Page) -> None:
    for _ in range(5):
        assert (await page.ask("POST", "/login", "token=wrong", **FORM))[0] == 401
    status, headers, _ = await page.ask("POST", "/login", f"token={TOKEN}", **FORM)
    assert status == 429
    assert 0 < int(headers["retry-after"]) <= 60
    assert (await page.ask("POST", "/api/spool/purge", "{}", Authorization=f"Bearer {TOKEN}"))[0] == 429
    assert (await page.ask("GET", "/"))[0] == 200


async def test_a_large_body_is_refused(page: Page) -> None:
    body = "service=" + "x" * server.MAX_BODY
    assert (await page.ask("POST", "/api/spool/purge", body, Authorization=f"Bearer {TOKEN}", **FORM))[0] == 413


async def test_a_page_on_the_network_shows_nothing_without_the_token() -> None:
    page, runner = await start(Backend(), Address("0.0.0.0", 8701))
    try:
        status, _, html = await page.ask("GET", "/")
        assert status == 401
        assert "<form" in html and "AAAA-BBBB" not in html
        assert (await page.ask("GET", "/state.json"))[0] == 401
        assert (await page.ask("GET", "/metrics", Authorization=f"Bearer {TOKEN}"))[0] == 200
        _, headers, _ = await page.ask("POST", "/login", f"token={TOKEN}", **FORM)
        status, _, html = await page.ask("GET", "/", Cookie=headers["set-cookie"].partition(";")[0])
        assert status == 200 and "AAAA-BBBB" in html
    finally:
        await runner.cleanup()


def test_metrics_are_valid_exposition_format() -> None:
    text = metrics.render(example_state())
    sample = re.compile(r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? -?[0-9.e+-]+')
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in typed
            typed.add(name)
        elif not line.startswith("# HELP "):
            assert sample.fullmatch(line), line
            name = line.partition("{")[0].partition(" ")[0]
            assert name in typed or re.sub("_(bucket|sum|count)$", "", name) in typed
    assert 'edged_decisions_total{service="solder",decided="edge"} 9\n' in text
    assert 'edged_labels_total{service="solder",label="a\\"\\n\\\\"} 3\n' in text
    assert 'edged_latency_seconds_bucket{service="solder",le="0.002"} 9\n' in text
    assert 'edged_latency_seconds_bucket{service="solder",le="5"} 11\n' in text
    assert 'edged_latency_seconds_bucket{service="solder",le="+Inf"} 12\n' in text
    assert 'edged_latency_seconds_sum{service="solder"} 6\n' in text
    assert 'edged_undecided_total{service="solder",why="unreadable"} 4\n' in text
    assert "edged_spool_evicted_total 1\n" in text


def test_the_page_token_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    path = tmp_path / "page-token"
    token = secret_token(path)
    assert len(token) >= 32 and path.stat().st_mode & 0o777 == 0o600
    assert secret_token(path) == token
    path.write_text("short\n")
    assert secret_token(path) not in ("short", token)


@pytest.fixture
def edged(tmp_path: Path) -> Iterator[Edged]:
    with Edged(tmp_path / "state") as edged:
        yield edged


def test_the_daemon_serves_its_page_and_takes_its_own_token(edged: Edged) -> None:
    status = edged.status()
    host, _, port = status.addresses.page.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/")
    response = connection.getresponse()
    html = response.read().decode()
    assert response.status == 200 and status.device_id in html and len(html) < 20_000
    token = (edged.state / "page-token").read_text().strip()
    connection.request("POST", "/api/services/none/recalibrate", headers={"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    assert response.status == 404 and b"there is no service" in response.read()
    connection.close()
