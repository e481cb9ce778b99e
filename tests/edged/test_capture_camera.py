"""Cameras, pushed streams and the preview, served by a real worker: faults, recovery and hand-over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgekit.messages import Drain, Event
from edgekit.vision.images import decode, sniff
from tests.support.cameras import MjpegCamera
from tests.support.models import expected_label, picture
from tests.support.plant import LABELS, Plant, definition
from tests.support.workers import WorkerProcess


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.package()
    yield plant
    await plant.close()


def service(plant: Plant, camera: MjpegCamera | None = None, **source: Any) -> str:
    table = {"kind": "mjpeg", "url": camera.url, "silent_s": 0.6} if camera is not None else {}
    return definition("solder", source=table | source, outputs=[str(plant.root / "out.jsonl")], deadline_ms=2000)


def frames(brightness: float = 0.5) -> Iterator[bytes]:
    for number in count():
        yield picture(brightness, side=64, kind=".jpg", seed=number)


def lines(plant: Plant) -> list[dict[str, Any]]:
    path = plant.root / "out.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def inspected(worker: WorkerProcess) -> int:
    report = worker.service("solder")
    return report.inspected if report else 0


def said(worker: WorkerProcess, code: str, level: str) -> Event | None:
    return next((event for event in worker.events if event.code == code and event.level == level), None)


def sources(worker: WorkerProcess) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(worker.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended; a zombie is one, too
            if "edged.capture.source" in child.cmdline():
                found.append(child)
    return found


async def test_a_camera_is_inspected_and_shown(plant: Plant) -> None:
    with MjpegCamera(lambda: frames(0.9)) as camera:
        worker = await plant.start(service(plant, camera))
        await worker.until(lambda: inspected(worker) > 20)
        status, preview = await plant.get("/v1/services/solder/preview.jpg")
        assert status == 200
        assert sniff(preview).format == "jpeg" and max(decode(preview).shape) <= 640
        report = worker.service("solder")
        assert report is not None and report.preview.startswith("bright ")
    assert {line["label"] for line in lines(plant)} == {expected_label(0.9, LABELS)}
    assert not worker.events or {event.code for event in worker.events} == {"service-loading"}


async def test_a_killed_source_process_is_started_again(plant: Plant) -> None:
    with MjpegCamera(frames) as camera:
        worker = await plant.start(service(plant, camera))
        await worker.until(lambda: inspected(worker) > 5)
        sources(worker)[0].kill()
        event = await worker.until(lambda: said(worker, "camera:solder", "warning"))
        assert event.text == (
            f"solder gets no pictures from mjpeg http://127.0.0.1:{camera.port}/video: its process ended with signal "
            "SIGKILL; it is tried again"
        )
        await worker.until(lambda: said(worker, "camera:solder", "ok"))
        before = inspected(worker)
        await worker.until(lambda: inspected(worker) > before + 5)


async def test_a_silent_camera_is_noticed_and_welcomed_back(plant: Plant) -> None:
    with MjpegCamera(frames) as camera:
        worker = await plant.start(service(plant, camera))
        await worker.until(lambda: inspected(worker) > 5)
        camera.mute.set()
        event = await worker.until(lambda: said(worker, "camera:solder", "warning"))
        assert "it has sent no picture for 0.6 s" in event.text
        camera.mute.clear()
        await worker.until(lambda: said(worker, "camera:solder", "ok"))


async def test_a_stopped_source_process_does_not_stop_the_service(plant: Plant) -> None:
    with MjpegCamera(frames) as camera:
        worker = await plant.start(service(plant, camera))
        await worker.until(lambda: inspected(worker) > 5)
        hung = sources(worker)[0]
        hung.suspend()
        assert (await plant.post("/v1/services/solder/inspect", picture(0.1)))[0] == 200
        await worker.until(lambda: said(worker, "camera:solder", "warning"))
        await worker.until(lambda: said(worker, "camera:solder", "ok"))
        assert not hung.is_running()


async def test_a_camera_that_comes_late(plant: Plant) -> None:
    with MjpegCamera(frames) as camera:
        url = camera.url
    worker = await plant.start(service(plant, kind="mjpeg", url=url))
    event = await worker.until(lambda: said(worker, "camera:solder", "warning"))
    assert "Connection refused" in event.text
    assert "channel=1" not in event.text, "what stands in a query may be a password"


async def test_pictures_that_cannot_be_read_are_reported(plant: Plant) -> None:
    state = {"bad": True}

    def mixed() -> Iterator[bytes]:
        for frame in frames():
            yield frame[:200] if state["bad"] else frame

    with MjpegCamera(mixed) as camera:
        worker = await plant.start(service(plant, camera))
        event = await worker.until(lambda: said(worker, "picture-refused:solder", "warning"))
        assert "cut short" in event.text
        state["bad"] = False
        await worker.until(lambda: said(worker, "picture-refused:solder", "ok"))


async def test_a_recording_ends_once(plant: Plant) -> None:
    folder = plant.root / "film"
    folder.mkdir()
    for number in range(5):
        (folder / f"board-{number}.png").write_bytes(picture(0.5, seed=number))
    worker = await plant.start(service(plant, kind="replay", path=str(folder), fps=20))
    event = await worker.until(lambda: said(worker, "camera:solder", "ok"))
    assert event.passing and event.text.endswith("to its end: 5 pictures, 0 skipped")
    await worker.until(lambda: not sources(worker))
    await worker.until(lambda: len(lines(plant)) == 5)
    assert [line["serial"] for line in lines(plant)] == [f"board-{number}" for number in range(5)]


async def test_a_hand_over_leaves_a_short_gap_and_never_two_readers(plant: Plant) -> None:
    with MjpegCamera(frames) as camera:
        old = await plant.start(service(plant, camera))
        await old.until(lambda: inspected(old) > 10)
        new = await plant.start(service(plant, camera))
        await asyncio.sleep(0.5)
        assert len(camera.requests) == 1, "the new worker waits"
        old.send(Drain())
        assert await old.exit_status() == 0
        await new.until(lambda: inspected(new) > 10)
        assert len(camera.requests) == 2
    times = [line["captured_at"] for line in lines(plant)]
    gap = max(after - before for before, after in pairwise(times))
    print(f"the gap was {gap * 1000:.0f} ms")
    assert gap < 1.0
    assert not said(new, "camera:solder", "warning")


async def test_a_killed_worker_leaves_the_camera_to_the_next_one(plant: Plant) -> None:
    with MjpegCamera(frames) as camera:
        old = await plant.start(service(plant, camera))
        await old.until(lambda: inspected(old) > 5)
        orphan = sources(old)[0]
        new = await plant.start(service(plant, camera))
        old.kill()
        await old.exit_status()
        await new.until(lambda: inspected(new) > 5)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


# --- pushed streams ---------------------------------------------------------------------------------------------------


def part(data: bytes, serial: str = "") -> bytes:
    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n"
    head += f"Edged-Serial: {serial}\r\n" if serial else ""
    return f"--b\r\n{head}\r\n".encode() + data + b"\r\n"


async def push(plant: Plant, body: Any, kind: str = "multipart/x-mixed-replace; boundary=b") -> tuple[int, Any]:
    status, reply, _ = await plant.post("/v1/services/solder/stream", body, **{"Content-Type": kind})
    return status, reply


async def test_a_pushed_stream_is_counted_at_its_end(plant: Plant) -> None:
    worker = await plant.start(service(plant))

    async def body() -> AsyncIterator[bytes]:
        for number in range(10):
            yield part(picture(0.1, kind=".jpg", seed=number), f"board-{number}")
            await asyncio.sleep(0.03)
        yield part(b"no picture")
        yield b"--b--\r\n"

    status, reply = await push(plant, body())
    assert status == 200
    assert reply["frames"] == 11 and reply["refused"] == 1 and reply["complete"] is True
    assert reply["decided"] + reply["stale"] == 10 and reply["decided"] > 5
    assert reply["labels"] == {"dark": reply["decided"]}
    await worker.until(lambda: len(lines(plant)) == reply["decided"])
    assert lines(plant)[0]["serial"] == "board-0"


async def test_of_a_stream_that_is_too_fast_the_newest_frames_are_decided(plant: Plant) -> None:
    plant.package("slow", work=100)
    text = definition("solder", "slow", outputs=[str(plant.root / "out.jsonl")], deadline_ms=5000)
    worker = await plant.start(text)

    async def body() -> AsyncIterator[bytes]:
        for number in range(200):
            yield part(picture(0.1, kind=".jpg", seed=number), f"board-{number}")
            await asyncio.sleep(0.002)
        yield b"--b--\r\n"

    status, reply = await push(plant, body())
    assert status == 200 and reply["frames"] == 200
    assert reply["stale"] > 50 and reply["decided"] + reply["stale"] + reply["shed"] == 200
    await worker.until(lambda: len(lines(plant)) == reply["decided"])
    serials = [int(line["serial"].removeprefix("board-")) for line in lines(plant)]
    assert max(serials) == 199, "the last one is always among them"


async def test_streams_that_are_none(plant: Plant) -> None:
    await plant.start(service(plant))
    assert (await push(plant, b"x", "image/jpeg"))[0] == 415
    assert (await push(plant, b"x", "multipart/mixed"))[0] == 415
    status, reply = await push(plant, b"x" * 50_000)
    assert status == 400 and "no boundary" in reply["error"]
    status, reply = await push(plant, part(picture(0.5, kind=".jpg")) + b"--b\r\nContent-Length: 99999999999\r\n\r\n")
    assert status == 400 and "after 1 pictures: a part exceeds" in reply["error"]
    status, reply, _ = await plant.post("/v1/services/nobody/stream", b"")
    assert status == 404
    assert (await plant.get("/v1/services/solder/stream"))[0] == 405


async def test_a_stream_ends_with_its_worker(plant: Plant) -> None:
    worker = await plant.start(service(plant))
    started = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        for number in count():
            yield part(picture(0.1, kind=".jpg", seed=number))
            started.set()
            await asyncio.sleep(0.02)

    pushing = asyncio.create_task(push(plant, body()))
    await started.wait()
    await asyncio.sleep(0.2)
    before = time.monotonic()
    worker.send(Drain())
    status, reply = await pushing
    assert status == 200 and reply["complete"] is False and reply["decided"] > 0
    assert await worker.exit_status() == 0
    assert time.monotonic() - before < 8


async def test_frames_of_a_client_that_hangs_up_are_decided(plant: Plant) -> None:
    worker = await plant.start(service(plant))
    _, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    head = "POST /v1/services/solder/stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    data = part(picture(0.5, kind=".jpg")) + b"--b"
    writer.write(f"{head}Content-Type: multipart/mixed; boundary=b\r\n\r\n{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()
    await worker.until(lambda: inspected(worker) == 1)
    writer.close()
    assert (await plant.post("/v1/services/solder/inspect", picture(0.1)))[0] == 200


# --- preview ----------------------------------------------------------------------------------------------------------


async def test_who_may_see_a_preview(plant: Plant) -> None:
    await plant.start(service(plant), management_token="t" * 43)
    assert (await plant.get("/v1/services/solder/preview.jpg"))[0] == 404, "nothing was decided yet"
    await plant.post("/v1/services/solder/inspect", picture(0.5, side=2000, kind=".jpg"))
    url = plant.url("/v1/services/solder/preview.jpg")
    wanted = {"plain": 200, "evil.example": 403, "token": 200}
    headers = {
        "plain": {},
        "evil.example": {"Host": "evil.example"},
        "token": {"Host": "x", "Edged-Management": "t" * 43},
    }
    for name, status in wanted.items():
        async with plant.session.get(url, headers=headers[name]) as response:
            assert response.status == status, name
            data = await response.read()
            if status == 200:
                assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
                assert response.headers["Cache-Control"] == "no-store"
                assert max(sniff(data).width, sniff(data).height - 28) == 640
    assert (await plant.get("/v1/services/nobody/preview.jpg"))[0] == 404


async def test_a_large_picture_is_not_kept(plant: Plant) -> None:
    await plant.start(service(plant))
    padded = picture(0.5, side=16, kind=".jpg") + bytes(5 << 20)
    assert (await plant.post("/v1/services/solder/inspect", padded))[0] == 200
    assert (await plant.get("/v1/services/solder/preview.jpg"))[0] == 404
