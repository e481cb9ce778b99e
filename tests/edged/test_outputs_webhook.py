"""Webhooks against a real server: nothing lost, in order, whatever the receiver does; and nothing told to others."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from edged.capture.outputs import OutputError, network, webhook
from edged.capture.outputs.network import NetworkOutput
from edged.capture.outputs.opening import Outputs
from edged.capture.outputs.webhook import retry_after
from edgekit.messages import Decision
from edgekit.outputs import Output
from edgekit.services import Service
from tests.support.receivers import Events, Hook, decision, make_certificates, until


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    hook = Hook()
    await hook.start()
    yield hook
    await hook.stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "BACKOFF_BASE_S", 0.05)
    monkeypatch.setattr(network, "BACKOFF_CAP_S", 0.1)


class Bench:
    """The outputs of one worker, of which the first is looked at."""

    def __init__(self, root: Path, url: str, **options: Any) -> None:
        self.events = Events()
        self.outputs = Outputs(root / "queues", "DEVICE", self.events, lambda: False)
        definition = Output(kind="webhook", url=url, **options)
        (self.output,) = self.outputs.of(Service(name="solder", model="m", outputs=[definition])).values()

    def write(self, *numbers: int) -> None:
        for number in numbers:
            one = decision(number)
            self.output.write(one, msgspec.json.encode(one))

    async def durably(self, number: int) -> None:
        one = decision(number)
        await self.output.write_durably(one, msgspec.json.encode(one))

    @property
    def report(self) -> Any:
        return self.output.report()


def ids(*numbers: int) -> list[str]:
    return [f"SAMPLE{number:06}" for number in numbers]


def url(hook: Hook, path: str = "/decisions?token=geheim") -> str:
    return f"http://127.0.0.1:{hook.port}{path}"


def secret_file(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


async def test_decisions_arrive_whole_and_in_order(tmp_path: Path, hook: Hook) -> None:
    bench = Bench(tmp_path, url(hook))
    bench.write(*range(1, 201))
    await until(lambda: len(hook.taken) == 200 and bench.report.waiting == 0)
    assert hook.taken == ids(*range(1, 201))
    headers, body = hook.requests[0]
    assert msgspec.json.decode(body, type=Decision) == decision(1)
    assert headers[":path"] == "/decisions?token=geheim"
    assert headers["Content-Type"] == "application/json" and headers["Idempotency-Key"] == "SAMPLE000001"
    assert "Authorization" not in headers and "Edged-Signature" not in headers
    report = bench.report
    assert (report.delivered, report.dropped, report.failing_since) == (200, 0, None)
    assert report.name.startswith(f"http://127.0.0.1:{hook.port}/decisions (")
    assert "geheim" not in report.name, "a token in the query is nobody's business"
    await bench.outputs.close()
    assert bench.events == []


async def test_an_outage_loses_nothing_and_blocks_nobody(tmp_path: Path, hook: Hook) -> None:
    bench = Bench(tmp_path, url(hook))
    bench.write(1, 2)
    await until(lambda: len(hook.taken) == 2)
    await hook.stop()
    started = time.monotonic()
    bench.write(*range(3, 100))
    assert time.monotonic() - started < 0.05
    await bench.durably(100)
    await until(lambda: bench.report.failing_since is not None and bench.report.waiting == 98)
    assert bench.report.problem == "connection refused"
    await bench.outputs.close()  # the worker ends, another one comes
    bench = Bench(tmp_path, url(hook))
    await hook.start()
    await until(lambda: len(hook.taken) == 100)
    assert hook.taken == ids(*range(1, 101))
    await until(lambda: bench.report.failing_since is None and bench.report.waiting == 0)
    await bench.outputs.close()


async def test_a_lasting_outage_is_a_health_item_until_it_is_over(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "LASTING_S", 0.5)
    hook.answer = lambda number: web.Response(status=503, text="being\x1b[31m updated\n")
    bench = Bench(tmp_path, url(hook))
    bench.write(1)
    await until(lambda: bench.report.failing_since)
    assert bench.events == [], "a hiccup is no news"
    await until(lambda: bench.events)
    level, code, text = bench.events[0]
    assert (level, code.partition(":")[0]) == ("warning", "output-failing")
    assert "solder" in text and f"127.0.0.1:{hook.port}" in text and "it answered 503: being [31m updated" in text
    assert "geheim" not in text
    hook.answer = lambda number: web.Response()
    await until(lambda: len(bench.events) == 2)
    assert bench.events[1][:2] == ("ok", code)
    await bench.outputs.close()
    assert len(bench.events) == 2


async def test_a_refused_decision_is_given_up_loudly_and_the_others_go_on(tmp_path: Path, hook: Hook) -> None:
    def answer(number: int) -> web.Response:
        sample = json.loads(hook.requests[-1][1])["sample_id"]
        return web.Response(status=422, text="no such board") if sample in ids(2, 3) else web.Response(status=201)

    hook.answer = answer
    bench = Bench(tmp_path, url(hook))
    bench.write(1, 2, 3, 4)
    await until(lambda: len(hook.taken) == 2 and bench.report.waiting == 0)
    assert hook.taken == ids(1, 4)
    offered = [json.loads(body)["sample_id"] for _, body in hook.requests]
    assert [offered.count(sample) for sample in ids(1, 2, 3, 4)] == [1, network.TRIES, network.TRIES, 1]
    assert (bench.report.dropped, bench.report.delivered) == (2, 2)
    assert bench.events.codes() == ["output-refused"], "the second one a minute later, together with others"
    assert "422: no such board" in bench.events[0][2] and "SAMPLE000002" in bench.events[0][2]
    await bench.outputs.close()


@pytest.mark.parametrize("status", [401, 403, 404, 408, 425, 429, 301, 302, 307, 500, 503])
async def test_what_is_not_about_this_decision_waits(tmp_path: Path, hook: Hook, status: int) -> None:
    """A token that ran out or a moved address must not cost a weekend's decisions, nor lead them elsewhere."""
    elsewhere = {"Location": f"http://127.0.0.1:{hook.port}/elsewhere"}
    hook.answer = lambda number: web.Response(status=status, headers=elsewhere)
    bench = Bench(tmp_path, url(hook, "/here"))
    bench.write(1)
    await until(lambda: len(hook.requests) > network.TRIES + 2)
    assert (bench.report.dropped, bench.report.waiting) == (0, 1)
    hook.answer = lambda number: web.Response()
    await until(lambda: hook.taken == ids(1))
    assert {headers[":path"] for headers, _ in hook.requests} == {"/here"}
    await bench.outputs.close()


async def test_retry_after_is_honoured(tmp_path: Path, hook: Hook) -> None:
    times: list[float] = []

    def answer(number: int) -> web.Response:
        times.append(time.monotonic())
        return web.Response(status=429, headers={"Retry-After": "1"}) if number == 1 else web.Response()

    hook.answer = answer
    bench = Bench(tmp_path, url(hook))
    bench.write(1)
    await until(lambda: hook.taken)
    assert times[1] - times[0] >= 1.0
    await bench.outputs.close()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0.0), ("7", 7.0), (" 7 ", 7.0), ("-7", 0.0), ("1e3", 0.0), ("99999999999", 300.0), ("nan", 0.0),
        (formatdate(1_800_000_060, usegmt=True), 60.0), (formatdate(1_700_000_000, usegmt=True), 0.0), ("Mon, 99", 0.0),
        ("9" * 5000, 300.0),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date_and_never_too_long(value: str, seconds: float) -> None:
    assert retry_after(value, 1_800_000_000.0) == pytest.approx(seconds)


async def test_a_silent_receiver_times_out(tmp_path: Path, hook: Hook) -> None:
    hook.delay_s = 5.0
    bench = Bench(tmp_path, url(hook), timeout_s=0.2)
    bench.write(1)
    await until(lambda: bench.report.problem == "no answer within 0.2 s")
    hook.delay_s = 0.0
    await until(lambda: hook.taken)
    await bench.outputs.close()


async def test_a_reply_without_end_is_cut_off(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            await writer.drain()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bench = Bench(tmp_path, f"http://127.0.0.1:{port}/")
    bench.write(1)
    await until(lambda: bench.report.problem.startswith("it answered 500: xxx"))
    assert len(bench.report.problem) < 200
    await bench.outputs.close()
    server.close()


async def test_the_status_counts_when_the_body_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "BODY_S", 0.1)
    seen: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await asyncio.sleep(3)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    bench = Bench(tmp_path, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    bench.write(1, 2)
    await until(lambda: bench.report.delivered == 2)
    assert len(seen) == 2
    await bench.outputs.close()
    server.close()


async def test_the_signature_and_the_header_come_from_files(tmp_path: Path, hook: Hook) -> None:
    options = {
        "secret": secret_file(tmp_path / "secret", "a secret\n"),
        "authorization": secret_file(tmp_path / "authorization", "Bearer abc.def\n", 0o640),
    }
    bench = Bench(tmp_path, url(hook), **options)
    bench.write(1)
    await until(lambda: hook.taken)
    headers, body = hook.requests[0]
    assert headers["Authorization"] == "Bearer abc.def"
    assert abs(int(headers["Edged-Timestamp"]) - time.time()) < 5
    signed = headers["Edged-Timestamp"].encode() + b"." + body
    assert headers["Edged-Signature"] == "v1=" + hmac.new(b"a secret", signed, hashlib.sha256).hexdigest()
    await bench.outputs.close()


@pytest.mark.parametrize(
    ("key", "text", "mode", "sentence"),
    [
        ("secret", "abc", 0o644, "everybody"),
        ("authorization", "Bearer GEHEIM\nX: y", 0o600, "one header on one line"),
        ("secret", "", 0o600, "is empty"),
        ("secret", "x" * 10_000, 0o600, "more than 8192 bytes"),
        ("secret", None, 0o600, "cannot be read: No such file"),
    ],
)
async def test_an_unusable_secret_sends_nothing_and_says_why(
    tmp_path: Path, hook: Hook, key: str, text: str | None, mode: int, sentence: str
) -> None:
    path = tmp_path / "file"
    if text is not None:
        secret_file(path, text, mode)
    bench = Bench(tmp_path, url(hook), **{key: str(path)})
    bench.write(1)
    await until(lambda: sentence in bench.report.problem)
    assert str(path) in bench.report.problem and "GEHEIM" not in bench.report.problem
    assert not hook.requests
    path.unlink(missing_ok=True)
    secret_file(path, "right now")
    await until(lambda: hook.taken)
    await bench.outputs.close()


async def test_https_trusts_the_named_authority_and_no_other(tmp_path: Path) -> None:
    hook, ours, other = Hook(), make_certificates(tmp_path / "tls"), make_certificates(tmp_path / "other")
    await hook.start(ours)
    address = f"https://127.0.0.1:{hook.port}/"
    for number, ca in enumerate(["", str(other.ca)], 1):
        bench = Bench(tmp_path / str(number), address, ca_file=ca)
        bench.write(1)
        await until(lambda: "certificate" in bench.report.problem)  # noqa: B023
        await bench.outputs.close()
    assert not hook.requests
    bench = Bench(tmp_path, address, ca_file=str(ours.ca))
    bench.write(1)
    await until(lambda: hook.taken)
    await bench.outputs.close()
    await hook.stop()


async def test_https_refuses_a_certificate_for_another_name(tmp_path: Path) -> None:
    hook, tls = Hook(), make_certificates(tmp_path / "tls", "another.example")
    await hook.start(tls)
    bench = Bench(tmp_path, f"https://127.0.0.1:{hook.port}/", ca_file=str(tls.ca))
    bench.write(1)
    await until(lambda: "certificate" in bench.report.problem)
    await bench.outputs.close()
    await hook.stop()


async def test_two_workers_deliver_each_decision_once_and_in_order(tmp_path: Path, hook: Hook) -> None:
    old = Bench(tmp_path, url(hook))
    await old.durably(1)
    new = Bench(tmp_path, url(hook))
    for number in range(2, 60):
        await (old if number % 2 else new).durably(number)
    await old.outputs.close()
    await new.durably(60)
    await until(lambda: len(hook.taken) == 60 and new.report.waiting == 0)
    assert hook.taken == ids(*range(1, 61))
    assert old.report.delivered + new.report.delivered == 60
    with pytest.raises(OutputError, match="closed"):
        await old.durably(61)
    await new.outputs.close()


async def test_a_full_queue_gives_up_the_oldest_and_says_so(tmp_path: Path, hook: Hook) -> None:
    hook.answer = lambda number: web.Response(status=500)
    bench = Bench(tmp_path, url(hook), queue_rows=100)
    for number in range(1, 151):
        bench.write(number)
        if number % 30 == 0:
            await bench.durably(1000 + number)
    await until(lambda: bench.report.waiting == 100)
    assert bench.report.dropped == 55
    assert bench.events.codes() == ["output-full"] and bench.events[0][0] == "error"
    hook.answer = lambda number: web.Response()
    await until(lambda: bench.report.waiting == 0)
    assert hook.taken[-2:] == [*ids(150), *ids(1150)]
    assert [level for level, code, _ in bench.events if code.startswith("output-full")] == ["error", "ok"]
    assert "55 are missing" in bench.events[1][2]
    await bench.outputs.close()


async def test_a_disk_without_a_queue_keeps_decisions_in_memory(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "RETRY_S", 0.05)
    monkeypatch.setattr(network, "MAX_PENDING_BYTES", 10_000)
    (tmp_path / "queues").write_text("a file where the directory should be")
    bench = Bench(tmp_path, url(hook))
    bench.write(*range(1, 101))
    waiter = asyncio.create_task(bench.durably(200))
    await until(lambda: bench.events)
    assert bench.events[0][:2] == ("error", f"output-stuck:{bench.output.key}")
    assert bench.report.problem and bench.report.dropped > 50
    assert not waiter.done()
    (tmp_path / "queues").unlink()
    await asyncio.wait_for(waiter, 5)
    await until(lambda: len(hook.taken) == 101 - bench.report.dropped)
    assert hook.taken[-2:] == [*ids(100), *ids(200)]
    assert bench.events.codes() == ["output-stuck", "output-stuck", "output-lost"]
    await bench.outputs.close()


async def test_closing_beside_a_dead_disk_and_a_dead_receiver_is_quick(tmp_path: Path, hook: Hook) -> None:
    (tmp_path / "queues").write_text("a file where the directory should be")
    bench = Bench(tmp_path, url(hook))
    bench.write(1, 2)
    waiter = asyncio.create_task(bench.durably(3))
    await asyncio.sleep(0.3)
    hung = Hook()
    await hung.start()
    hung.delay_s = 5.0
    second = Bench(tmp_path / "second", url(hung))
    second.write(1)
    await until(lambda: hung.requests)
    started = time.monotonic()
    await asyncio.gather(bench.outputs.close(), second.outputs.close())
    assert time.monotonic() - started < 1.5
    with pytest.raises(OutputError):
        await waiter
    assert bench.events[-1][1].startswith("output-lost") and bench.events[-1][2].startswith("2 decisions")
    hung.delay_s = 0.0
    second = Bench(tmp_path / "second", url(hung))
    await until(lambda: "SAMPLE000001" in hung.taken)
    await second.outputs.close()
    await hung.stop()


async def test_a_folder_finds_what_it_queued(tmp_path: Path, hook: Hook) -> None:
    bench = Bench(tmp_path, url(hook))
    await bench.durably(1)
    await until(lambda: hook.taken)
    hook.answer = lambda number: web.Response(status=500)
    await bench.durably(2)
    assert isinstance(bench.output, NetworkOutput)
    known = await asyncio.to_thread(bench.output.written, "solder")
    assert known == {"SAMPLE000001": decision(1), "SAMPLE000002": decision(2)}
    await bench.outputs.close()


async def test_a_queue_that_nobody_uses_any_more_is_removed_after_a_month(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook.answer = lambda number: web.Response(status=500)
    bench = Bench(tmp_path, url(hook))
    await bench.durably(1)
    await until(lambda: hook.requests)
    await bench.outputs.close()
    other = Bench(tmp_path, url(hook, "/other"))
    await until(lambda: len(list((tmp_path / "queues").glob("*.lock"))) == 2)
    other.outputs.start_sweep()
    await asyncio.sleep(0.2)
    assert len(list((tmp_path / "queues").glob("*.db"))) == 2
    monkeypatch.setattr("edged.capture.outputs.opening.ORPHANED_S", -1.0)
    other.outputs.start_sweep()
    await until(lambda: other.events)
    assert "1 decisions" in other.events[0][2]
    assert [path.stem for path in (tmp_path / "queues").glob("*.lock")] == [other.output.key]
    await other.outputs.close()
