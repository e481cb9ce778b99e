"""What people see of retraining, and what they take away: one job, or all of a device that they lock out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from retraining_bench import Asked, Device, site

from cloudd.retraining.errors import RetrainingError
from cloudd.retraining.service import Retraining
from tests.support.cloud import Cloud, FakeDevice

DEVICE = "DEVICE-A"


def cli(cloud: Cloud, *arguments: str) -> str:
    command = [sys.executable, "-m", "cloudd.cli.main", *arguments, "--state", str(cloud.state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_job_that_was_removed_takes_its_pictures_along_and_is_not_begun_again(tmp_path: Path) -> None:
    asked, other = Asked(tmp_path / "a"), Asked(tmp_path / "b", pictures=13, service="sockets")
    root = tmp_path / "cloudd"
    async with site(root) as url:
        for one in (asked, other):
            await Device(url).begin(one)
            await Device(url).fill(one, leave=1)
    retraining = Retraining(root, 1.0, wall=lambda: 1.8e9)
    await retraining.open()
    views = {one.service: one for one in retraining.jobs()}
    assert views["solder"].pictures == len(asked.request.pictures) and views["solder"].stage == "receiving"
    assert views["solder"].bytes == sum(asked.request.files.values())
    gone = await retraining.remove(DEVICE, asked.job)
    assert gone.removed and gone.stage == "closed" and "operator" in gone.text
    left = {path.name for path in (root / DEVICE / "files").iterdir()}
    assert left <= other.files.keys() and left, "the other job keeps what it names"
    await retraining.close()
    async with site(root) as url:
        state = await Device(url).begin(asked)
        assert state.stage == "closed" and "operator" in state.text
        status, _ = await Device(url).ask("PUT", f"/{asked.job}/files/{next(iter(asked.files))}?offset=0", b"x")
        assert status == 404
        assert (await Device(url).state(other)).stage in ("receiving", "waiting"), "the other job goes on"


async def test_nothing_of_a_device_that_is_locked_out_stays_and_it_begins_nothing(tmp_path: Path) -> None:
    asked, root = Asked(tmp_path / "network"), tmp_path / "cloudd"
    async with site(root) as url:
        await Device(url).begin(asked)
        await Device(url).fill(asked)
        await Device(url, "DEVICE-B").begin(asked)
    retraining = Retraining(root, 1.0, wall=lambda: 1.8e9)
    await retraining.open()
    retraining.state(DEVICE, asked.job)  # it waits, so its process begins
    await retraining.lock_out(DEVICE)
    assert not (root / DEVICE).exists()
    assert [one.device_id for one in retraining.jobs()] == ["DEVICE-B"]
    with pytest.raises(RetrainingError, match="locked out"):
        await retraining.begin(DEVICE, asked.job, asked.body)
    with pytest.raises(RetrainingError):
        await retraining.store(DEVICE, asked.job, next(iter(asked.files)), 0, b"x")
    assert not (root / DEVICE).exists()
    retraining.admit(DEVICE)
    assert (await retraining.begin(DEVICE, asked.job, asked.body)).stage == "receiving"
    await retraining.close()
    again = Retraining(root, 1.0, wall=lambda: 1.8e9)
    await again.open(revoked=[DEVICE])  # as after a crash between the revocation and this
    assert not (root / DEVICE).exists() and (root / "DEVICE-B").exists()
    await again.close()


async def test_the_commands_list_show_and_remove_and_revoking_removes_the_pictures(tmp_path: Path) -> None:
    asked = Asked(tmp_path / "network")
    with Cloud(tmp_path / "cloudd") as cloud:
        assert "No device has a model retrained" in cli(cloud, "retraining", "list")
        device = FakeDevice(tmp_path / "device")
        assert (await device.enroll(cloud, cloud.invite(name="press 4"))).status == 200
        assert (await device.send(cloud, "PUT", f"/v1/retraining/{asked.job}", asked.body)).status == 200
        for sha256, data in list(asked.files.items())[:3]:
            route = f"/v1/retraining/{asked.job}/files/{sha256}?offset=0"
            assert (await device.send(cloud, "PUT", route, data)).status == 200
        listing = cli(cloud, "retraining", "list", "--device", "press 4")
        assert asked.job[:12] in listing and "solder" in listing and "receiving" in listing
        (row,) = json.loads(cli(cloud, "retraining", "list", "--json"))
        assert row["device_id"] == device.id and row["pictures"] == len(asked.request.pictures)
        shown = cli(cloud, "retraining", "show", asked.job[:8])
        assert device.id in shown and "waits for its files" in shown
        files = tmp_path / "cloudd" / "retraining" / device.id / "files"
        assert len(list(files.iterdir())) == 3
        assert "is removed with its pictures" in cli(cloud, "retraining", "remove", asked.job[:8])
        assert not list(files.iterdir())
        newer = Asked(tmp_path / "newer", version="1-2")
        await device.send(cloud, "PUT", f"/v1/retraining/{newer.job}", newer.body)
        sha256, data = next(iter(newer.files.items()))
        assert (
            await device.send(cloud, "PUT", f"/v1/retraining/{newer.job}/files/{sha256}?offset=0", data)
        ).status == 200
        assert list(files.iterdir())
        assert "is locked out" in cli(cloud, "devices", "revoke", "press 4")
        assert not files.parent.exists()
        assert (await device.send(cloud, "GET", f"/v1/retraining/{newer.job}")).status == 403
        assert "No device has a model retrained" in cli(cloud, "retraining", "list")
