"""Outputs of a real worker: killed between queue and delivery, swapped, with a folder that waits for its queue."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from edgekit.messages import Drain
from tests.support.models import picture
from tests.support.plant import Plant, definition
from tests.support.receivers import Hook, until


@pytest.fixture
async def plant(tmp_path: Path) -> AsyncIterator[Plant]:
    plant = Plant(tmp_path)
    plant.package()
    yield plant
    await plant.close()


@pytest.fixture
async def hook() -> AsyncIterator[Hook]:
    hook = Hook()
    await hook.start()
    yield hook
    await hook.stop()


def service(hook: Hook, **rest: object) -> str:
    return definition("solder", **rest) + f'\n[[outputs]]\nkind = "webhook"\nurl = "http://127.0.0.1:{hook.port}/"\n'


async def inspect(plant: Plant, number: int) -> str:
    serial = f"board-{number:03}"
    path = "/v1/services/solder/inspect"
    status, reply, _ = await plant.post(path, picture(0.5, seed=number), **{"Edged-Serial": serial})
    assert status == 200, reply
    sample: str = reply["sample_id"]
    return sample


async def test_a_decision_reaches_the_webhook_and_the_report(plant: Plant, hook: Hook) -> None:
    worker = await plant.start(service(hook))
    samples = [await inspect(plant, number) for number in range(5)]
    await until(lambda: hook.taken == samples)
    report = await worker.until(lambda: (r := worker.service("solder")) and r.outputs[0].delivered == 5 and r)
    assert (report.outputs[0].kind, report.outputs[0].waiting) == ("webhook", 0)


@pytest.mark.parametrize("point", ["output.queued:3", "output.delivered:3"])
async def test_a_kill_between_queue_and_delivery_loses_nothing(plant: Plant, hook: Hook, point: str) -> None:
    worker = await plant.start(service(hook), environment={"EDGED_CRASH_AT": point})
    answered: list[str] = []
    asking = asyncio.create_task(_until_it_dies(plant, answered))
    assert await asyncio.wait_for(worker.exit_status(), 20) == -signal.SIGKILL
    asking.cancel()  # the last request may wait in the backlog, which outlives the worker
    await asyncio.wait([asking])
    worker = await plant.start(service(hook))
    last = await inspect(plant, 999)
    await until(lambda: last in hook.taken)
    counts = Counter(hook.taken)
    # The newest may still have been in memory, a tenth of a second of them at 30 ms each; whatever was committed came.
    lost = [sample for sample in answered if sample not in counts]
    assert lost == answered[len(answered) - len(lost) :] and len(lost) <= 5
    if point.startswith("output.delivered"):
        assert [sample for sample, count in counts.items() if count > 1], "what was not marked comes again"
    first_seen = list(dict.fromkeys(hook.taken))
    assert [sample for sample in first_seen if sample in answered] == [s for s in answered if s in counts]


async def _until_it_dies(plant: Plant, answered: list[str]) -> None:
    with contextlib.suppress(aiohttp.ClientError, OSError):  # it is killed in the middle of a request
        for number in range(200):
            answered.append(await inspect(plant, number))
            await asyncio.sleep(0.03)


@pytest.mark.parametrize("point", ["output.queued:2", "output.delivered", "folder.decided:2", "folder.moved"])
async def test_a_folder_loses_no_picture_whenever_the_worker_dies(plant: Plant, hook: Hook, point: str) -> None:
    (plant.root / "in").mkdir()
    for number in range(20):
        (plant.root / "in" / f"board-{number:03}.png").write_bytes(picture(0.5, seed=number))
    folder = service(hook, source={"kind": "folder", "path": str(plant.root / "in"), "settle_ms": 60})
    worker = await plant.start(folder, ready=False, environment={"EDGED_CRASH_AT": point})
    assert await worker.exit_status() == -signal.SIGKILL
    worker = await plant.start(folder)
    done = plant.root / "in" / "done"
    await worker.until(lambda: len(list(done.glob("*.png"))) == 20)
    await worker.until(lambda: (r := worker.service("solder")) and r.outputs[0].waiting == 0 and r.outputs[0].delivered)
    assert len(set(hook.taken)) == 20
    assert not (plant.root / "in" / "decisions.jsonl").exists()
    if not point.startswith("output.delivered"):
        assert len(hook.taken) <= 20 + 4, "only what was under way is repeated"


async def test_a_swap_loses_and_repeats_nothing(plant: Plant, hook: Hook) -> None:
    old = await plant.start(service(hook))
    samples = [await inspect(plant, number) for number in range(20)]
    new = await plant.start(service(hook))
    old.send(Drain())
    samples += [await inspect(plant, number) for number in range(20, 60)]
    assert await old.exit_status() == 0
    samples += [await inspect(plant, number) for number in range(60, 80)]
    await new.until(lambda: (r := new.service("solder")) and r.outputs[0].waiting == 0 and len(hook.taken) == 80)
    assert sorted(hook.taken) == sorted(samples)


async def test_a_receiver_that_is_down_delays_no_answer_and_no_end(plant: Plant, hook: Hook) -> None:
    hook.answer = lambda number: web.Response(status=503, headers={"Retry-After": "60"})
    worker = await plant.start(service(hook))
    samples = [await inspect(plant, number) for number in range(10)]
    report = await worker.until(lambda: (r := worker.service("solder")) and r.outputs[0].failing_since and r)
    assert report.outputs[0].problem == "it answered 503"
    worker.send(Drain())
    assert await asyncio.wait_for(worker.exit_status(), 8) == 0
    hook.answer = lambda number: web.Response()
    await plant.start(service(hook))
    await until(lambda: hook.taken == samples)


async def test_a_failed_service_still_delivers_what_waits(plant: Plant, hook: Hook) -> None:
    hook.answer = lambda number: web.Response(status=500)
    worker = await plant.start(service(hook))
    sample = await inspect(plant, 1)
    await worker.until(lambda: (r := worker.service("solder")) and r.outputs[0].failing_since)
    worker.send(Drain())
    await worker.exit_status()
    hook.answer = lambda number: web.Response()
    (plant.packages["brightness"] / "model.onnx").write_bytes(b"no model")
    worker = await plant.start(service(hook))
    await until(lambda: hook.taken == [sample])
    assert (await worker.until(lambda: worker.service("solder"))).state == "failed"
