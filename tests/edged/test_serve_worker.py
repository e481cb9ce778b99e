"""The worker as a process: configuration, inspection, every refusal, outputs, overload, drain, kill -9."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from edgekit.messages import Drain
from tests.support.models import expected_label, picture
from tests.support.plant import LABELS, Plant, definition
from tests.support.workers import WorkerProcess


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    yield plant
    await plant.close()


async def test_inspect_answers_reports_and_writes_outputs(plant: Plant) -> None:
    plant.package()
    out = plant.root / "out" / "decisions.jsonl"
    worker = await plant.start(definition("solder", outputs=[str(out)]))
    ready = worker.service("solder")
    assert ready is not None
    assert (ready.state, ready.model) == ("ready", "brightness@1")
    decisions = []
    for number, brightness in enumerate((0.1, 0.5, 0.9, 0.2)):
        status, decision, headers = await plant.post(
            "/v1/services/solder/inspect",
            picture(brightness, kind=".jpg" if number % 2 else ".png", seed=number),
            **{"Edged-Serial": f"board {number}", "Edged-Captured-At": "1700000000.5"},
        )
        assert status == 200 and "Server" not in headers
        assert decision["label"] == expected_label(brightness, LABELS)
        decisions.append(decision)
    first = decisions[0]
    assert (first["service"], first["decided"], first["model"]) == ("solder", "edge", "brightness@1")
    assert (first["serial"], first["captured_at"]) == ("board 0", 1700000000.5)
    assert len({decision["sample_id"] for decision in decisions}) == 4
    assert {"queue", "decode", "infer", "total"} <= first["timings_ms"].keys()
    assert first["timings_ms"]["total"] >= first["timings_ms"]["infer"] > 0
    report = await worker.until(lambda: (r := worker.service("solder")) and r.inspected == 4 and r)
    assert report.labels == {"dark": 2, "dim": 1, "bright": 1}
    assert report.p50_ms is not None
    assert worker.reports[-1].rss > 1 << 20
    status, body = await plant.get("/v1/services")
    assert json.loads(body)["services"][0]["inspected"] == 4
    await asyncio.sleep(1.2)  # a decision is in the file at once and on the disk within a second
    assert [json.loads(line) for line in out.read_text().splitlines()] == decisions


def huge_png() -> bytes:
    """30000x30000 pixels in some 100 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(30_001 * 3_000), 9)
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def test_bad_input_is_a_clear_error_and_harms_nothing(plant: Plant) -> None:
    plant.package()
    worker = await plant.start(definition("solder"))
    good = picture(0.9)
    inspect = "/v1/services/solder/inspect"
    jpeg = picture(0.9, side=200, kind=".jpg", seed=1)
    for data, status, words in (
        (b"this is no picture", 400, "not a JPEG"),
        (jpeg[: len(jpeg) // 2], 400, "cut short"),
        (b"", 400, "no body"),
        (huge_png(), 400, "30000x30000"),
        (b"\xff" * (16 << 20) + b"x", 413, "exceeds 16777216 bytes"),
    ):
        assert (answer := await plant.post(inspect, data))[0] == status, answer
        assert words in answer[1]["error"]

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield bytes(1 << 20)

    assert (await plant.post(inspect, chunks()))[0] == 413
    form = aiohttp.FormData()
    form.add_field("file", good, filename="a.png")
    status, answer, _ = await plant.post(inspect, form())
    assert (status, "without a form" in answer["error"]) == (415, True)
    status, answer, headers = await plant.post("/v1/services/nope/inspect", good)
    assert "Server" not in headers
    assert (status, answer["error"]) == (404, "there is no service 'nope'; known services: solder")
    for path in (f"{inspect}?deadline_ms=soon", f"{inspect}?deadline_ms=-1", f"{inspect}?deadline_ms=nan"):
        assert (await plant.post(path, good))[0] == 400
    assert (await plant.post(inspect, good, **{"Edged-Captured-At": "yesterday"}))[0] == 400
    assert (await plant.post(inspect, good, **{"Edged-Captured-At": "2026-11-24T10:00:00+01:00"}))[0] == 200
    assert (await plant.post(inspect, good, **{"Edged-Serial": "x" * 201}))[0] == 400
    assert (await plant.post(inspect, good, Origin="https://evil.example"))[0] == 403
    assert (await plant.post(inspect, good, **{"Content-Encoding": "br"}))[0] in (400, 501)
    status, answer, _ = await plant.post(inspect, b"not gzip at all", **{"Content-Encoding": "gzip"})
    assert status == 400, answer
    bomb = gzip.compress(bytes(200 << 20), 1)
    assert (await plant.post(inspect, bomb, **{"Content-Encoding": "gzip"}))[0] == 413
    status, answer, _ = await plant.post(inspect, good)
    assert (status, answer["label"]) == (200, "bright")
    report = await worker.until(lambda: (r := worker.service("solder")) and r.inspected == 2 and r)
    assert report.refused == 3
    assert worker.reports[-1].rss < 400 << 20


async def test_other_errors_are_json_too(plant: Plant) -> None:
    plant.package()
    await plant.start(definition("solder"))
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v1/services/solder/inspect", 405),
        ("DELETE", "/v2/models/brightness", 405),
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/nope/ready", 400),
    ):
        answer = await plant.get(path, method)
        assert answer[0] == status, path
        assert json.loads(answer[1])["error"]
    assert (await plant.get("/v2/health/live"))[0] == (await plant.get("/v2/health/ready"))[0] == 200
    for junk in (
        b"\x16\x03\x01 this is TLS\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", plant.listener.getsockname()[1])
        writer.write(junk)
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), head
        assert b"server:" not in head.lower(), "what serves here, and in which version, is nobody's business"
        assert json.loads(body)["error"]


async def test_curl_style_expect_continue(plant: Plant) -> None:
    plant.package()
    await plant.start(definition("solder"))
    data = picture(0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", plant.listener.getsockname()[1])
    head = b"POST /v1/services/solder/inspect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head % len(data))
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 100")
    writer.write(data)
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_service_that_cannot_run_says_why_and_others_work(plant: Plant) -> None:
    plant.package()
    broken = plant.package("broken")
    (broken / "model.onnx").write_bytes((broken / "model.onnx").read_bytes() + b"x")
    worker = await plant.start(
        definition("good"), definition("bad-hash", "broken"), definition("absent", "missing@3"), threads=1
    )
    ready = await worker.until_ready()
    assert {service.name: service.state for service in ready.services} == {
        "good": "ready",
        "bad-hash": "failed",
        "absent": "failed",
    }
    for name, words in (("bad-hash", "SHA-256"), ("absent", "missing@3 is not installed")):
        status, answer, _ = await plant.post(f"/v1/services/{name}/inspect", picture(0.5))
        assert status == 503
        assert words in answer["error"]
        report = worker.service(name)
        assert report is not None
        assert words in report.detail
    assert (await plant.post("/v1/services/good/inspect", picture(0.5)))[1]["label"] == "dim"
    assert (await plant.get("/v2/models/broken"))[0] == 404


async def test_overload_is_shed_at_once_and_the_rest_is_answered(plant: Plant) -> None:
    plant.package(work=40)
    worker = await plant.start(definition("solder", deadline_ms=60_000), threads=1)
    data = picture(0.9)

    async def ask() -> tuple[int, float, Any]:
        started = time.monotonic()
        status, _, headers = await plant.post("/v1/services/solder/inspect", data)
        return status, time.monotonic() - started, headers

    connector = aiohttp.TCPConnector(limit=0)
    await plant.session.close()
    plant.session = aiohttp.ClientSession(connector=connector)
    answers = await asyncio.gather(*(ask() for _ in range(200)))
    good = [seconds for status, seconds, _ in answers if status == 200]
    shed = [(seconds, headers) for status, seconds, headers in answers if status == 503]
    assert len(good) + len(shed) == 200
    assert len(good) >= 64
    assert shed
    assert all(int(headers["Retry-After"]) >= 1 for _, headers in shed)
    assert sorted(seconds for seconds, _ in shed)[len(shed) // 2] < max(good)
    await worker.until(lambda: (r := worker.service("solder")) and (r.inspected, r.shed) == (len(good), len(shed)))


async def test_work_of_a_client_that_hung_up_is_dropped(plant: Plant) -> None:
    plant.package(work=400)
    worker = await plant.start(definition("solder", deadline_ms=60_000), threads=1)
    data = picture(0.9)
    first = asyncio.create_task(plant.post("/v1/services/solder/inspect", data))
    await asyncio.sleep(0.05)
    gone = [asyncio.create_task(plant.post("/v1/services/solder/inspect", data)) for _ in range(8)]
    await asyncio.sleep(0.1)
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    assert (await first)[0] == 200
    await plant.post("/v1/services/solder/inspect", data)
    report = await worker.until(lambda: (r := worker.service("solder")) and r.inspected >= 2 and not r.waiting and r)
    assert report.inspected < 6  # one or two of the eight may have been in the model already


async def test_a_deadline_that_passed_in_the_queue_is_shed(plant: Plant) -> None:
    plant.package(work=400)
    await plant.start(definition("solder", deadline_ms=60_000), threads=1)
    data = picture(0.9)
    first = asyncio.create_task(plant.post("/v1/services/solder/inspect", data))
    await asyncio.sleep(0.02)
    status, answer, headers = await plant.post("/v1/services/solder/inspect?deadline_ms=5", data)
    assert (status, "deadline" in answer["error"], headers["Retry-After"]) == (503, True, "1")
    assert (await first)[0] == 200


async def test_drain_finishes_what_is_in_flight_and_hands_over(plant: Plant) -> None:
    plant.package(work=100)
    out = plant.root / "out.jsonl"
    old = await plant.start(definition("solder", deadline_ms=60_000, outputs=[str(out)]), threads=1)
    data = picture(0.9)
    assert (await plant.post("/v1/services/solder/inspect", data))[2].get("Connection") is None
    flying = [asyncio.create_task(plant.post("/v1/services/solder/inspect", data)) for _ in range(6)]
    await asyncio.sleep(0.05)
    new = await plant.start(definition("solder", deadline_ms=60_000, outputs=[str(out)]), threads=1)
    old.send(Drain())
    answers = await asyncio.gather(*flying)
    assert [status for status, _, _ in answers] == [200] * 6
    assert await old.exit_status() == 0
    # Connections that the old worker told to close, and new ones, are served by the new one.
    for _ in range(5):
        assert (await plant.post("/v1/services/solder/inspect", data))[0] == 200
    report = await new.until(lambda: (r := new.service("solder")) and r.inspected >= 5 and r)
    assert report.inspected >= 5
    new.send(Drain())
    assert await new.exit_status() == 0
    assert len(out.read_text().splitlines()) == 12


async def test_idle_connections_hear_that_they_end(plant: Plant) -> None:
    plant.package()
    worker = await plant.start(definition("solder"))
    data = picture(0.9)
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    request = b"POST /v1/services/solder/inspect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"Connection: close" not in head
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    await reader.readexactly(length)
    worker.kill(signal.SIGTERM)
    await asyncio.sleep(0.3)
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200")
    assert b"Connection: close" in head
    assert await worker.exit_status() == 0
    writer.close()


async def test_a_closed_control_channel_drains(plant: Plant) -> None:
    plant.package()
    worker = await plant.start(definition("solder"))
    worker.hang_up()
    assert await worker.exit_status() == 0


async def test_drain_while_loading_ends_at_once(plant: Plant) -> None:
    plant.package()
    worker = await plant.start(definition("solder"), ready=False)
    worker.send(Drain())
    assert await worker.exit_status() == 0


async def test_a_worker_dies_with_its_parent(plant: Plant) -> None:
    code = (
        "import subprocess, sys, socket, time\n"
        "a, b = socket.socketpair(); l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()\n"
        "p = subprocess.Popen([sys.executable, '-m', 'edged.serve', '--control-fd', str(b.fileno()),"
        " '--http-fd', str(l.fileno())], pass_fds=(a.fileno(), b.fileno(), l.fileno()))\n"
        "print(p.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": "."}
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    await asyncio.sleep(1.5)  # it holds the other end of its own control channel, so only the signal can end it
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the worker outlived its parent")


async def test_kill_9_under_a_stream_refuses_no_connection(plant: Plant) -> None:
    """The socket stays open while no worker runs: a client may lose an answer, but never finds the door locked."""
    plant.package()
    services = (definition("solder"),)
    worker = await plant.start(*services)
    data = picture(0.9)
    request = (
        b"POST /v1/services/solder/inspect HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        % len(data)
        + data
    )
    stopped = False
    outcomes = {"answered": 0, "lost": 0}

    async def client() -> None:
        while not stopped:
            reader, writer = await asyncio.open_connection("127.0.0.1", plant.listener.getsockname()[1])
            try:
                writer.write(request)
                reply = await asyncio.wait_for(reader.read(), 30)
                outcomes["answered" if reply.startswith(b"HTTP/1.1 200") else "lost"] += 1
            except ConnectionError:
                outcomes["lost"] += 1
            finally:
                writer.close()

    clients = [asyncio.create_task(client()) for _ in range(4)]
    for _ in range(2):
        await asyncio.sleep(0.4)
        worker.kill()
        assert await worker.exit_status() == -signal.SIGKILL
        await asyncio.sleep(0.1)
        worker = await plant.start(*services)
    await asyncio.sleep(0.4)
    stopped = True
    await asyncio.gather(*clients)  # a refused connection would raise here
    assert outcomes["answered"] > 20
    assert outcomes["lost"] <= 8


async def test_hostile_environment_is_guarded(plant: Plant) -> None:
    plant.package()
    worker = await plant.start(definition("solder"))
    assert Path(f"/proc/{worker.pid}/cwd").readlink() == plant.state / "run" / "empty"
    assert list((plant.state / "run" / "empty").iterdir()) == []
    descriptors = [str(entry.readlink()) for entry in Path(f"/proc/{worker.pid}/fd").iterdir()]
    limit = psutil.Process(worker.pid).rlimit(psutil.RLIMIT_DATA)[1]
    assert 0 < limit < psutil.virtual_memory().total, "a hostile model can ask for any amount of memory"
    assert sum(name.startswith("socket:") for name in descriptors) <= 4  # control, listener, and the loop's own pair


async def test_nonsense_on_the_control_channel_ends_the_worker(plant: Plant) -> None:
    worker = await WorkerProcess.start(plant.listener, None)
    plant.workers.append(worker)
    worker.send(Drain())
    assert await worker.exit_status() == 1
    assert isinstance(plant.listener, socket.socket)
