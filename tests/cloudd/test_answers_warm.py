"""Models are loaded before the first picture comes: after a start, after a worker was lost, after one was added."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import insert

from cloudd.answers.pool import AnswerPool, Busy, PoolSettings
from cloudd.devices.fleet import Fleet
from cloudd.storage import schema
from edgekit.packages import MANIFEST_NAME
from tests.support.answers import Cloud, cloud, loaded, sample, until
from tests.support.cloud import Cloud as Daemon
from tests.support.cloud import FakeDevice, ask
from tests.support.models import make_package, picture


async def add(here: Cloud, root: Path, *refs: str) -> None:
    for ref in refs:
        name, version = ref.split("@")
        here.answers.added(await here.registry.add(make_package(root / ref, name, version).root))


async def stays(here: Cloud, *models: str) -> None:
    """These models are held, and nothing more comes."""
    await loaded(here, *models)
    await until(lambda: not here.answers._warming)
    await loaded(here, *models)


@pytest.fixture
async def used(tmp_path: Path) -> AsyncIterator[Path]:
    """The state of a cloudd whose models a@1, b@1, c@1 and then b@1 again answered; d@1 never did."""
    async with cloud(tmp_path / "state") as here:
        await add(here, tmp_path, "a@1", "b@1", "c@1", "d@1")
        for number, name in enumerate("abcb"):
            await here.answers.answer("DEV", sample(number, name), picture(0.9))
    yield tmp_path / "state"


async def test_after_a_start_the_models_that_answered_last_are_there(used: Path) -> None:
    async with cloud(used) as here:
        here.answers.start()
        await stays(here, "b@1", "c@1")
        pids = here.pool.pids
        async with asyncio.timeout(5):
            await here.answers.answer("DEV", sample(9, "b"), picture(0.9))
        assert here.pool.pids == pids


async def test_every_worker_loads_them(used: Path) -> None:
    async with cloud(used, PoolSettings(workers=2)) as here:
        here.answers.start()
        await until(lambda: len(here.pool.pids) == 2 and all(len(w.held) == 2 for w in here.pool._live.values()))


async def test_what_devices_are_told_to_ask_follows_in_the_newest_version(tmp_path: Path) -> None:
    async def wanted() -> list[str]:
        return ["missing", "b", "a@1", "c"]

    async with cloud(tmp_path, wanted=wanted) as here:
        for ref in ("a@1", "a@2", "b@1", "b@1.10", "c@1"):
            await here.registry.add(make_package(tmp_path / ref, *ref.split("@")).root)
        here.answers.start()
        await stays(here, "b@1.10", "a@1")


async def test_where_many_models_are_and_none_was_asked_none_is_loaded(tmp_path: Path) -> None:
    async with cloud(tmp_path) as here:
        here.answers.start()
        await add(here, tmp_path, "a@1")
        await stays(here, "a@1")
        await add(here, tmp_path, "b@1")
        await stays(here, "a@1")
    async with cloud(tmp_path) as here:
        here.answers.start()
        await until(lambda: not here.answers._warming)
        assert here.pool.pids == []


async def test_a_new_version_of_a_model_in_use_is_loaded_when_it_is_added(used: Path, tmp_path: Path) -> None:
    async with cloud(used) as here:
        here.answers.start()
        await stays(here, "b@1", "c@1")
        await add(here, tmp_path, "d@2")
        await stays(here, "b@1", "c@1")
        await add(here, tmp_path, "b@2")
        await until(lambda: any("b@2" in worker.held.values() for worker in here.pool._live.values()))


async def test_the_successor_of_a_lost_worker_holds_what_it_held(used: Path) -> None:
    async with cloud(used) as here:
        here.answers.start()
        await stays(here, "b@1", "c@1")
        (pid,) = here.pool.pids
        asking = asyncio.create_task(here.answers.answer("DEV", sample(9, "b"), picture(0.9)))
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Busy, match="failed on this sample"):
            await asking
        await until(lambda: pid not in here.pool.pids)
        await loaded(here, "b@1", "c@1")

        (pid,) = here.pool.pids
        os.kill(pid, signal.SIGKILL)  # while it idles: seen at the next question, which loads its own model first
        await until(lambda: not psutil.pid_exists(pid))
        await here.answers.answer("DEV", sample(9, "b"), picture(0.9))
        await loaded(here, "b@1", "c@1")


async def test_a_model_that_cannot_be_loaded_is_only_a_line_in_the_log(
    used: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(used / "cache")
    async with cloud(used) as here:
        entry = await here.registry.resolve("b")
        assert entry is not None
        (manifest,) = (file.sha256 for file in entry.files if file.path == MANIFEST_NAME)
        await here.blobs.remove(manifest, _unused)
        with caplog.at_level(logging.WARNING, "cloudd.answers"):
            here.answers.start()
            await until(lambda: not here.answers._warming)
        assert "could not be loaded ahead" in caplog.text
        await loaded(here, "c@1")
        assert (await here.answers.answer("DEV", sample(9, "c"), picture(0.9))).verdict.label == "bright"


async def _unused(_sha256: str) -> bool:
    return False


async def test_it_ends_while_models_are_being_loaded(used: Path) -> None:
    for pause in (0.0, 0.05, 0.3):
        async with cloud(used) as here:
            here.answers.start()
            await asyncio.sleep(pause)
            async with asyncio.timeout(5):
                await here.answers.close()
                await here.pool.stop()


async def test_loading_ahead_takes_no_place_of_a_sample(tmp_path: Path) -> None:
    pool = AnswerPool(tmp_path, PoolSettings(workers=3, queue=1))
    warming = asyncio.create_task(pool.warm("m@1", tmp_path))
    await asyncio.sleep(0)
    pool.check("DEV")
    await pool.stop()
    await warming


async def test_what_desired_services_ask(tmp_path: Path) -> None:
    def service(name: str, hard: str, leave: str = "raw") -> str:
        return f'name = "{name}"\nmodel = "small"\nmay_leave = "{leave}"\n[hard_samples]\n{hard}\n'

    def asks(name: str, model: str, leave: str = "raw") -> str:
        return service(name, f'answer_model = "{model}"', leave)

    async with cloud(tmp_path) as here:
        fleet = Fleet(here.rows)
        for number, services in enumerate(
            [
                [asks("s", "big"), asks("t", "other@2")],
                [asks("s", "other@2"), service("off", 'mode = "off"\nanswer_model = "x"'), asks("n", "y", "nothing")],
                [asks("s", "big"), asks("t", "big")],
                [service("e", 'mode = "filter"\nfilter = "EdgeOnly"\nanswer_model = "x"')],
                [asks("s", "of-a-revoked-device")],
            ]
        ):
            async with here.rows.writing() as connection:
                row = {"id": f"D{number}", "name": "d", "enrolled_at": 0.0, "serial": "1", "not_after": 9e9}
                await connection.execute(insert(schema.devices).values(row))
            await fleet.set_desired(f"D{number}", services, 1.0)
        await fleet.revoke("D4", 2.0)
        assert await fleet.answer_models() == ["big", "other@2"]


async def test_the_daemon_loads_ahead_after_models_add_and_after_a_start(tmp_path: Path) -> None:
    def loaded_by(cloud: Daemon) -> set[str]:
        mine = cloud.log.read_text().rpartition("a start\n")[2]
        return set(re.findall(r"the model (\S+) is loaded", mine))

    for ref in ("first@1", "second@1", "second@2", "third@1"):
        make_package(tmp_path / ref, *ref.split("@"))
    service = 'name = "s"\nmodel = "small"\n[hard_samples]\nanswer_model = "second"\n'
    device = FakeDevice(tmp_path / "device")
    with Daemon(tmp_path / "state") as running:
        running.admin.post("/models", {"path": str(tmp_path / "first@1")})
        await until(lambda: loaded_by(running) == {"first@1"})
        assert (await device.enroll(running, running.invite())).status == 200
        running.admin.post(f"/devices/{device.id}/desired", {"services": [service]})
        for ref in ("third@1", "second@1", "second@2"):
            running.admin.post("/models", {"path": str(tmp_path / ref)})
        await until(lambda: loaded_by(running) == {"first@1", "second@1", "second@2"})
        assert (await ask(device, running, sample(1, "third"), picture(0.9))).status == 200
        assert running.stop() == 0
    with (tmp_path / "state" / "stderr.log").open("a") as log:
        log.write("a start\n")
    with Daemon(tmp_path / "state") as running:
        await until(lambda: loaded_by(running) == {"third@1", "second@2"})
        assert running.stop() == 0
