"""Answers with a real worker process, a real model, SQLite and blobs: once each, durable, and unharmed by bad input."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import onnx
import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.typedefs import Handler
from onnx import helper
from sqlalchemy import func, select

from cloudd.answers.looks import WHOLE, Look
from cloudd.answers.pool import Busy, PictureRefused, PoolSettings
from cloudd.answers.process import Worker
from cloudd.answers.routes import routes
from cloudd.answers.service import UnknownModel
from cloudd.answers.store import Retention
from cloudd.storage import Blobs, schema
from cloudd.web import DEVICE_ID, new_app
from edgekit.envelope import seal
from edgekit.messages import Answer, ModelAnswer, Problem
from edgekit.packages import InputSpec, Manifest, Variant, seal_package
from edgekit.vision.sniff import sniff
from tests.support.answers import EDGE, Cloud, cloud, loaded, sample, until
from tests.support.models import make_package, picture


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with cloud(tmp_path) as opened:
        await opened.registry.add(make_package(tmp_path / "p", "big", "1").root)
        yield opened


# --- the answer ------------------------------------------------------------------------------------------------------


async def test_a_sample_is_answered_and_kept_with_its_picture(here: Cloud) -> None:
    data = picture(0.9, side=500, kind=".jpg")
    answer = await here.answers.answer("DEV", sample(serial="B-17"), data)
    assert answer.verdict.label == "bright"
    assert answer.verdict.model == "big@1"
    assert answer.compute_ms > 0
    assert not answer.repeated
    (kept,) = await here.store.recent(10)
    assert (kept.device_id, kept.sample_id, kept.serial, kept.answered_at) == ("DEV", "s1", "B-17", 1000.0)
    assert (kept.edge, kept.cloud, kept.agrees) == (EDGE, answer.verdict, False)
    assert await here.store.picture(kept.id) == data
    small = await here.store.picture(kept.id, thumbnail=True)
    assert small is not None
    assert max(sniff(small).width, sniff(small).height) == 240
    assert msgspec.structs.astuple(await here.store.counts()) == (1, 1, 0)


async def test_a_repeated_upload_gets_the_same_answer(here: Cloud) -> None:
    first = await here.answers.answer("DEV", sample(), picture(0.9))
    again = await here.answers.answer("DEV", sample(), picture(0.1))
    assert again == msgspec.structs.replace(first, repeated=True, waited_ms=0.0)
    other = await here.answers.answer("OTHER", sample(), picture(0.1))
    assert other.verdict.label == "dark"
    assert (await here.store.counts()).answered == 2


async def test_uploads_of_one_sample_at_the_same_time_are_answered_once(here: Cloud) -> None:
    together = await asyncio.gather(*(here.answers.answer("DEV", sample(), picture(0.9)) for _ in range(8)))
    assert len({msgspec.json.encode(answer) for answer in together}) == 1
    assert (await here.store.counts()).answered == 1


async def test_a_device_that_hangs_up_finds_its_answer_later(here: Cloud) -> None:
    asking = asyncio.create_task(here.answers.answer("DEV", sample(), picture(0.9)))
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await here.answers.answer("DEV", sample(), picture(0.9))).verdict.label == "bright"
    assert (await here.store.counts()).answered == 1


async def test_the_newest_version_answers_unless_one_is_named(here: Cloud, tmp_path: Path) -> None:
    await here.registry.add(make_package(tmp_path / "q", "big", "2", flip=True).root)
    assert (await here.answers.answer("DEV", sample(1), picture(0.9))).verdict.label == "dark"
    assert (await here.answers.answer("DEV", sample(2, "big@1"), picture(0.9))).verdict.label == "bright"
    with pytest.raises(UnknownModel, match='no model "huge"'):
        await here.answers.answer("DEV", sample(3, "huge"), picture(0.9))


async def test_the_worker_is_confined(here: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-leak")
    await here.answers.answer("DEV", sample(), picture(0.9))
    (pid,) = here.pool.pids
    process = psutil.Process(pid)
    assert "do-not-leak" not in str(process.environ())
    assert process.environ()["ORT_DISABLE_TELEMETRY"] == "1"
    assert process.cwd() == str(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []
    assert process.rlimit(psutil.RLIMIT_AS)[1] == here.pool.settings.memory
    await here.pool.stop()
    await until(lambda: not psutil.pid_exists(pid))


# --- what goes wrong -------------------------------------------------------------------------------------------------


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + bytes(side // 8)
    data = zlib.compress(row * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


async def test_pictures_that_are_none_are_refused_and_the_worker_lives(here: Cloud) -> None:
    good = picture(0.9, side=200, kind=".jpg")
    await here.answers.answer("DEV", sample(0), good)
    pids = here.pool.pids
    damaged = good[:200] + bytes(200) + good[400:-2] + b"\xff\xd9"
    for number, data in enumerate([png_bomb(30_000), b"GIF89a nonsense", good[:-200], damaged[:150] + damaged[-2:]], 1):
        with pytest.raises(PictureRefused):
            await here.answers.answer("DEV", sample(number), data)
    assert here.pool.pids == pids
    assert (await here.store.counts()).answered == 1


async def test_a_picture_that_kills_the_worker_is_refused_at_its_third_try(
    here: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGED_CRASH_AT", "answer.worker")
    for _ in range(2):
        with pytest.raises(Busy, match="failed on this sample"):
            await here.answers.answer("DEV", sample(), picture(0.9))
    with pytest.raises(PictureRefused, match="twice"):
        await here.answers.answer("DEV", sample(), picture(0.9))
    assert here.pool.restarts == 2
    monkeypatch.delenv("EDGED_CRASH_AT")
    await loaded(here)  # the second one's successor, which crashes as well
    (pid,) = here.pool.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(pid))
    assert (await here.answers.answer("DEV", sample(2), picture(0.1))).verdict.label == "dark"


async def test_a_picture_on_which_the_model_fails_is_refused_at_its_third_try(here: Cloud, tmp_path: Path) -> None:
    """It fails on every repetition: an answer that means "later" would bring the sample back for ever."""
    package = make_package(tmp_path / "fragile", "fragile", "1")
    path = package.path("model.onnx")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "whole"
    model.graph.node.append(helper.make_node("Div", ["mean", "mean"], ["one"]))  # of a black picture: not a number
    model.graph.node.append(helper.make_node("Mul", ["whole", "one"], ["logits"]))
    path.write_bytes(model.SerializeToString())
    await here.registry.add(seal_package(package.root, package.manifest).root)
    for _ in range(2):
        with pytest.raises(Busy, match=r"fragile@1 failed on this picture: .* not numbers") as caught:
            await here.answers.answer("DEV", sample(1, "fragile"), picture(0.0))
        assert caught.value.retry_after_s < 30
    with pytest.raises(PictureRefused, match="twice"):
        await here.answers.answer("DEV", sample(1, "fragile"), picture(0.0))
    async with served(here) as client:
        assert (await client.post("/v1/answers", data=seal(sample(1, "fragile"), picture(0.0)))).status == 422
    assert (await here.answers.answer("DEV", sample(2, "fragile"), picture(0.9))).verdict.label == "bright"
    assert (await here.answers.answer("DEV", sample(3), picture(0.0))).verdict.label == "dark"
    assert here.pool.restarts == 0


async def test_a_worker_killed_while_idle_is_replaced_unseen(here: Cloud) -> None:
    await here.answers.answer("DEV", sample(1), picture(0.9))
    (pid,) = here.pool.pids
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(pid))
    assert (await here.answers.answer("DEV", sample(2), picture(0.9))).verdict.label == "bright"
    assert here.pool.pids != [pid]


async def test_nonsense_from_a_worker_costs_one_question_and_no_keeper(here: Cloud) -> None:
    await here.answers.answer("DEV", sample(1), picture(0.9))
    for number, header in enumerate([b'{"ticket":1,"error":"\xff"}', b'{"x":' + b"[" * 100_000], 2):
        (worker,) = here.pool._live.values()
        worker._reader.feed_data(struct.pack(">II", len(header), 0) + header)  # as if a picture had taken it over
        with pytest.raises(Busy, match="failed on this sample"):
            await here.answers.answer("DEV", sample(number), picture(0.9, seed=number))
        assert (await here.answers.answer("DEV", sample(number), picture(0.9, seed=number))).verdict.label == "bright"


async def test_it_is_known_which_models_a_worker_holds(tmp_path: Path) -> None:
    """A question for a model that made room for others must not be timed, or punished, like one for a loaded model."""
    (tmp_path / "empty").mkdir()
    ones = [str(make_package(tmp_path / name, name, "1").root) for name in ("a", "b", "c")]
    worker = await Worker.start(tmp_path / "empty", 4 << 30, 1)
    try:
        for directory in ones:
            await worker.ask("m", directory, b"", 60)
        assert [worker.holds(directory) for directory in ones] == [False, True, True]
        await worker.ask("m", ones[1], b"GIF89a", 60)  # a refused picture is a use as well
        await worker.ask("m", ones[0], b"", 60)
        assert [worker.holds(directory) for directory in ones] == [True, True, False]
        answer, _ = await worker.ask("m", str(tmp_path / "none"), b"", 60)
        assert answer.fault == "model" and not any(worker.holds(directory) for directory in ones)
    finally:
        await worker.end()


async def test_ctrl_c_in_the_terminal_is_not_for_the_worker(here: Cloud) -> None:
    await here.answers.answer("DEV", sample(1), picture(0.9))
    (pid,) = here.pool.pids
    os.kill(pid, signal.SIGINT)
    assert (await here.answers.answer("DEV", sample(2), picture(0.9, seed=2))).verdict.label == "bright"
    assert here.pool.pids == [pid] and here.pool.restarts == 0


async def test_a_worker_that_hangs_is_ended_at_its_deadline(tmp_path: Path) -> None:
    async with cloud(tmp_path, PoolSettings(answer_s=2.0)) as here:
        await here.registry.add(make_package(tmp_path / "p", "big", "1").root)
        await here.answers.answer("DEV", sample(1), picture(0.9))
        (pid,) = here.pool.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Busy):
            await here.answers.answer("DEV", sample(2), picture(0.8))
        assert not psutil.pid_exists(pid)
        assert (await here.answers.answer("DEV", sample(2), picture(0.8))).verdict.label == "bright"


async def test_a_worker_without_enough_memory_ends_and_says_so(tmp_path: Path) -> None:
    async with cloud(tmp_path, PoolSettings(memory=150 << 20)) as here:
        await here.registry.add(make_package(tmp_path / "p", "big", "1").root)
        with pytest.raises(Busy, match="cannot be loaded"):
            await here.answers.answer("DEV", sample(), picture(0.9))


async def test_a_model_that_cannot_be_loaded_rests_and_others_go_on(here: Cloud, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"this is no model")
    (broken / "labels.txt").write_text("a\nb\n")
    spec = InputSpec(width=4, height=4)
    variants = [Variant(file="model.onnx")]
    seal_package(broken, Manifest(name="bad", version="1", labels="labels.txt", input=spec, variants=variants))
    await here.registry.add(broken)
    for _ in range(2):
        with pytest.raises(Busy, match="bad@1 cannot be loaded") as caught:
            await here.answers.answer("DEV", sample(1, "bad"), picture(0.9))
        assert 0 < caught.value.retry_after_s <= 30
    assert (await here.answers.answer("DEV", sample(2), picture(0.9))).verdict.label == "bright"


async def test_the_queue_is_bounded_and_waiting_devices_come_before_spools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [picture(0.9, seed=number) for number in range(10)]
    asked: list[int] = []  # numbers of the pictures, in the order in which the worker got them
    ask_worker = Worker.ask

    async def ask(
        self: Worker, model: str, directory: str, data: bytes, timeout: float, look: Look = WHOLE
    ) -> tuple[ModelAnswer, bytes]:
        if data:
            asked.append(pictures.index(data))
        return await ask_worker(self, model, directory, data, timeout, look)

    monkeypatch.setattr(Worker, "ask", ask)
    async with cloud(tmp_path, PoolSettings(queue=4, total_s=30)) as here:
        await here.registry.add(make_package(tmp_path / "p", "big", "1").root)

        def start(number: int, late: bool) -> asyncio.Task[Answer]:
            return asyncio.create_task(here.answers.answer("DEV", sample(number, late=late), pictures[number]))

        async def waiting(count: int) -> None:
            await until(lambda: here.pool.load().waiting == count)

        await start(0, False)
        os.kill(here.pool.pids[0], signal.SIGSTOP)
        tasks = [start(1, False)]
        await until(lambda: asked == [0, 1])
        for number in (2, 3):
            tasks.append(start(number, True))
            await waiting(number - 1)
        with pytest.raises(Busy, match="2 samples from spools wait") as caught:
            await start(4, True)
        assert caught.value.retry_after_s > 0
        for number in (5, 6, 7, 8):
            tasks.append(start(number, False))
            await waiting(number - 2)
        with pytest.raises(Busy, match="4 samples wait"):
            await start(9, False)
        os.kill(here.pool.pids[0], signal.SIGCONT)
        await asyncio.gather(*tasks)
        assert asked == [0, 1, 5, 6, 7, 8, 2, 3]


@pytest.mark.parametrize("point", ["answer.blob", "answer.row"])
async def test_a_kill_around_the_row_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    async with cloud(tmp_path) as here:
        await here.registry.add(make_package(tmp_path / "p", "big", "1").root)
    code = """
import asyncio, sys
from pathlib import Path
from tests.support.answers import cloud, sample
from tests.support.models import picture
async def main(root):
    async with cloud(root) as here:
        await here.answers.answer("DEV", sample(), picture(0.9))
asyncio.run(main(Path(sys.argv[1])))
"""
    environment = {**os.environ, "EDGED_CRASH_AT": point, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = await asyncio.to_thread(subprocess.run, command, env=environment, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    async with cloud(tmp_path) as here:
        answer = await here.answers.answer("DEV", sample(), picture(0.9))
        assert answer.verdict.label == "bright"
        assert answer.repeated == (point == "answer.row")
        (kept,) = await here.store.recent(10)
        assert await here.store.picture(kept.id) == picture(0.9)


# --- retention -------------------------------------------------------------------------------------------------------


async def fill(here: Cloud, count: int, size: int = 1000) -> None:
    for number in range(count):
        answer = Answer(sample_id=f"s{number}", verdict=EDGE, compute_ms=1.0)
        data = number.to_bytes(2, "big") * (size // 2)
        await here.store.keep("DEV", sample(number), data, answer, b"thumb" + data[:2], float(number))


async def names(blobs: Blobs) -> set[str]:
    return {name async for name in blobs.list()}


@pytest.mark.parametrize("retention", [Retention(pictures=3), Retention(bytes=3 * 1010)])
async def test_the_oldest_pictures_go_first_and_answers_stay(tmp_path: Path, retention: Retention) -> None:
    async with cloud(tmp_path, retention=retention) as here:
        await fill(here, 10)
        assert await here.store.trim() == 7
        assert await here.store.trim() == 0
        kept = await here.store.recent(10)
        assert [one.sample_id for one in kept if one.picture] == ["s9", "s8", "s7"]
        assert await here.store.picture(kept[0].id) is not None
        assert await here.store.picture(kept[-1].id) is None
        assert len(await names(here.blobs)) == 6
        repeated = await here.store.find("DEV", "s0")
        assert repeated is not None
        assert repeated.repeated


async def test_rows_are_bounded_too(tmp_path: Path) -> None:
    async with cloud(tmp_path, retention=Retention(pictures=2, rows=5)) as here:
        await fill(here, 10)
        await here.store.trim()
        async with here.rows.reading() as connection:
            assert await connection.scalar(select(func.count()).select_from(schema.answers)) == 5


async def test_a_picture_that_a_newer_sample_shares_stays(tmp_path: Path) -> None:
    async with cloud(tmp_path, retention=Retention(pictures=1)) as here:
        for number in range(3):
            answer = Answer(sample_id=f"s{number}", verdict=EDGE, compute_ms=1.0)
            await here.store.keep("DEV", sample(number), b"same", answer, b"thumb", 0.0)
        assert await here.store.trim() == 2
        (newest, *_) = await here.store.recent(1)
        assert await here.store.picture(newest.id) == b"same"


# --- over HTTP -------------------------------------------------------------------------------------------------------


@web.middleware
async def as_device(request: web.Request, handler: Handler) -> web.StreamResponse:
    request[DEVICE_ID] = request.headers["X-Device"]
    return await handler(request)


@contextlib.asynccontextmanager
async def served(here: Cloud, memory: int = 64 << 20) -> AsyncIterator[TestClient]:
    app = new_app(as_device)
    app.add_routes(routes(here.answers, memory))
    async with TestClient(TestServer(app), headers={"X-Device": "DEV"}) as client:
        yield client


async def test_a_device_posts_an_envelope_and_gets_an_answer(here: Cloud) -> None:
    async with served(here) as client:
        for repeated in (False, True):
            reply = await client.post("/v1/answers", data=seal(sample(), picture(0.9)))
            assert reply.status == 200
            answer = msgspec.json.decode(await reply.read(), type=Answer)
            assert (answer.sample_id, answer.verdict.label, answer.repeated) == ("s1", "bright", repeated)
        other = await client.post("/v1/answers", data=seal(sample(), picture(0.1)), headers={"X-Device": "OTHER"})
        assert msgspec.json.decode(await other.read(), type=Answer).verdict.label == "dark"


def reseal(header: bytes, payload: bytes) -> bytes:
    return struct.pack(">II", len(header), len(payload)) + header + payload


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, "too few"),
        (b"\xff" * 40, 400, "announces"),
        (reseal(b"not json", picture(0.5)), 400, "header of the sample"),
        (reseal(b'{"sample_id":"x"}', picture(0.5)), 400, "service"),
        (reseal(b"[" * 15_000, picture(0.5)), 400, "header of the sample"),
        (seal(sample(sample_id=""), picture(0.5)), 400, "sample_id"),
        (seal(sample(sample_id="a\nb"), picture(0.5)), 400, "sample_id"),
        (seal(sample(service="x" * 500), picture(0.5)), 400, "service"),
        (seal(sample(model="../x"), picture(0.5)), 400, "no model name"),
        (seal(sample(model="huge"), picture(0.5)), 404, "cloudd models add"),
        (seal(sample(), b"not a picture"), 422, "not a JPEG or PNG"),
        (seal(sample(), b""), 422, "empty"),
        (seal(sample(), picture(0.5)[:-20]), 422, "cut short"),
        (seal(sample(), png_bomb(30_000)), 422, "30000x30000"),
        (seal(sample(), bytes(17 << 20)), 413, "larger"),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, bytes) else None,
)
async def test_bad_uploads_get_a_problem(here: Cloud, body: bytes, status: int, text: str) -> None:
    async with served(here) as client:
        reply = await client.post("/v1/answers", data=body)
        assert reply.status == status
        assert text in msgspec.json.decode(await reply.read(), type=Problem).error


async def test_a_busy_cloud_says_when_to_come_back(tmp_path: Path) -> None:
    async with cloud(tmp_path) as here, served(here, memory=1000) as client:
        await here.registry.add(make_package(tmp_path / "p", "big", "1").root)
        for body in (bytes(600), seal(sample(left_ms=0.1), picture(0.9))):  # no memory for it; no time for it
            reply = await client.post("/v1/answers", data=body)
            assert reply.status == 503
            assert int(reply.headers["Retry-After"]) >= 1
            problem = msgspec.json.decode(await reply.read(), type=Problem)
            assert problem.retry_after_s is not None


async def test_a_store_that_fails_is_a_503_and_nothing_is_half_kept(here: Cloud, tmp_path: Path) -> None:
    data = picture(0.9)
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "blobs" / digest[:2]).write_bytes(b"a file in the way of the blob's folder")
    async with served(here) as client:
        reply = await client.post("/v1/answers", data=seal(sample(), data))
        assert reply.status == 503
        assert await here.store.recent(10) == []
        (tmp_path / "blobs" / digest[:2]).unlink()
        assert (await client.post("/v1/answers", data=seal(sample(), data))).status == 200
