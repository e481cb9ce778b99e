"""`cloudd fl` against a real daemon, the device API behind its certificates, and the dashboard's pages."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from cloudd.cli.main import main
from edgekit.messages.federation import FederatedJob, Invitation, JobList, Later, Standing, decode_turn
from edgekit.packages import Package
from tests.support.cloud import Cloud, FakeDevice
from tests.support.federation import Plant, definition
from tests.support.federation_devices import opened


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with Cloud(tmp_path / "state") as running:
        yield running


async def test_a_job_from_its_file_to_its_end_by_commands_and_certificates(
    cloud: Cloud, package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state", str(cloud.state)]
    cloud.admin.post("/models", {"path": str(package.root)})
    devices = [FakeDevice(tmp_path / f"device-{number}", f"d{number}") for number in range(4)]
    for device in devices:
        assert (await device.enroll(cloud, cloud.invite())).status == 200
    plant = Plant(0)
    plant.devices = [device.store.key for device in devices[:3]]
    plant.roster(tmp_path / "x")
    (tmp_path / "job.toml").write_text(definition(plant, name="first"))

    assert main(["fl", "status", *state]) == 0
    assert "No job was started yet" in capsys.readouterr().out
    assert main(["fl", "start", str(tmp_path / "job.toml"), *state]) == 0
    assert "The job first is running" in capsys.readouterr().out
    assert main(["fl", "start", str(tmp_path / "job.toml"), *state]) == 1
    assert 'there was a job "first" already' in capsys.readouterr().err
    (tmp_path / "bad.toml").write_text(definition(plant, name="bad", model="nothing@1"))
    assert main(["fl", "start", str(tmp_path / "bad.toml"), *state]) == 1
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff")
    assert main(["fl", "start", str(tmp_path / "picture.toml"), *state]) == 1
    assert "picture.toml is no text, so it is no job" in capsys.readouterr().err

    reply = await devices[0].send(cloud, "GET", "/v1/federation/jobs")
    (notice,) = msgspec.json.decode(reply.body, type=JobList).jobs
    job = msgspec.json.decode(
        (await devices[0].send(cloud, "GET", f"/v1/federation/jobs/{notice.id}")).body, type=FederatedJob
    )
    assert (job.model, job.package, job.labels) == ("small@1", package.digest, ("good", "bad"))
    assert (await devices[3].send(cloud, "GET", f"/v1/federation/jobs/{notice.id}")).status == 404  # in no roster
    files = {}
    for entry in job.files:
        got = await devices[0].send(cloud, "GET", f"/v1/federation/jobs/{job.id}/files/{entry.sha256}")
        assert (got.status, len(got.body)) == (200, entry.size)
        files[entry.path] = got.body
    rules, start = opened(job, files)
    standing = msgspec.json.encode(Standing(version=0, state=rules.digest(start).hex()))
    turns = await asyncio.gather(
        *(one.send(cloud, "POST", f"/v1/federation/jobs/{job.id}/next", standing) for one in devices[:3])
    )
    assert all(isinstance(decode_turn(turn.body), Invitation | Later) for turn in turns)

    assert main(["fl", "status", "first", *state]) == 0
    shown = capsys.readouterr().out
    assert "0 of 2 rounds" in shown and "round 0: 0 of 3 vectors are here" in shown
    assert main(["fl", "status", *state, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["status"] == "running"
    html = _page(cloud, "/")
    assert "Federated jobs" in html and f"/federation/{job.id}" in html
    assert "Rounds" in _page(cloud, f"/federation/{job.id}")
    assert main(["fl", "stop", "first", *state]) == 0
    assert "stopped after 0 of 2 rounds" in capsys.readouterr().out
    assert main(["fl", "stop", "first", *state]) == 1
    assert main(["fl", "log", "first", *state]) == 0
    said = capsys.readouterr().out
    assert "started on small@1, 2 rounds" in said and "stopped by a person" in said
    assert main(["fl", "status", "unknown", *state]) == 1


def _page(cloud: Cloud, route: str) -> str:
    place = urlsplit(cloud.page)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=10)
    connection.request("GET", route)
    reply = connection.getresponse()
    assert reply.status == 200
    text = reply.read().decode()
    connection.close()
    return text
