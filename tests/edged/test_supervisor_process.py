"""The whole daemon with real workers and real models: kill -9 at every point, no refused connection, desired state."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from link_cloud import Cloud
from support.edged import Edged, wait_for
from support.models import make_package, picture

from edged.api import ApiError, Done, Finding, JoinBody, JoinReply
from edged.collab.spool_view import SpooledSample
from edgekit.messages import Decision, Desired


def definition(name: str = "solder", model: str = "brightness", deadline: int = 2000) -> str:
    return f'name = "{name}"\nmodel = "{model}"\ndeadline_ms = {deadline}\n'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def ended(pid: int) -> bool:
    """The process runs no more; whoever adopted it may not have collected it yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def inspect(address: str, service: str = "solder", brightness: float = 0.1) -> Decision:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", f"/v1/services/{service}/inspect", picture(brightness), {"Content-Type": "image/png"})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    assert response.status == 200, data
    return msgspec.json.decode(data, type=Decision)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package").root


@pytest.mark.parametrize(
    "point",
    ["supervisor.desired-written", "supervisor.files-written", "supervisor.worker-ready:2", "supervisor.swapped:2"],
)
def test_services_come_back_after_a_kill_at_every_point(tmp_path: Path, package: Path, point: str) -> None:
    state, address = tmp_path / "state", f"127.0.0.1:{free_port()}"
    with Edged(state, inference=address, crash_at=point) as edged:
        edged.add_model(package)
        wait_for(lambda: edged.status().worker.state == "ready", 60)
        orphan = edged.status().worker.pid
        with pytest.raises(Exception, match="edged"):
            edged.add_service(definition())
        edged.wait_crash()
    with Edged(state, inference=address) as edged:  # binds the same port although a worker was left over
        assert edged.wait_ready("solder").report.model == "brightness@1"
        assert inspect(address).label == "dark"
        assert orphan is not None and ended(orphan)
        assert edged.client.get("/services/solder", dict)["text"] == definition()


def test_a_killed_daemon_leaves_no_worker_and_its_successor_the_port(tmp_path: Path, package: Path) -> None:
    state, address = tmp_path / "state", f"127.0.0.1:{free_port()}"
    with Edged(state, inference=address) as edged:
        edged.add_model(package)
        edged.add_service(definition())
        worker = edged.status().worker.pid
        edged.kill()
    with Edged(state, inference=address) as edged:
        edged.wait_ready("solder")
        assert worker is not None and ended(worker)
        assert inspect(address).label == "dark"
        assert edged.stop() == 0


def test_no_connection_is_refused_while_workers_die_and_swap(tmp_path: Path, package: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        edged.add_service(definition(deadline=30_000))
        address = edged.status().addresses.inference
        host, _, port = address.rpartition(":")
        refused: list[str] = []
        reset: list[str] = []
        answered = 0
        over = threading.Event()

        def client() -> None:
            nonlocal answered
            body = picture(0.1)
            while not over.is_set():
                connection = http.client.HTTPConnection(host, int(port), timeout=30)
                try:
                    connection.request("POST", "/v1/services/solder/inspect", body, {"Content-Type": "image/png"})
                    answered += connection.getresponse().status == 200
                except ConnectionRefusedError as error:
                    refused.append(str(error))
                except (OSError, http.client.HTTPException) as error:
                    reset.append(repr(error))
                finally:
                    connection.close()

        thread = threading.Thread(target=client)
        thread.start()
        edged.add_service(definition(deadline=20_000))  # a swap
        assert not reset, "a swap loses no request"
        worker = edged.status().worker.pid
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        wait_for(lambda: edged.status().worker.pid not in (None, worker) and edged.status().worker.state == "ready", 60)
        before = answered
        wait_for(lambda: answered > before)
        over.set()
        thread.join()
        assert refused == []
        assert len(reset) <= 1, "only the request in flight at the kill"
        assert edged.status().worker.restarts == 1


def test_a_bad_definition_and_a_bad_model_leave_the_good_ones_running(tmp_path: Path, package: Path) -> None:
    bad = make_package(tmp_path / "bad", "liar", flip=True)
    samples = (bad.root / "package.toml").read_text().replace('label = "bright"', 'label = "dark"')
    (bad.root / "package.toml").write_text(samples)
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        edged.add_model(bad.root)
        assert edged.add_service(definition()).report.state == "ready"
        with pytest.raises(ApiError, match=r"dedline_ms.*deadline_ms"):
            edged.add_service(definition().replace("deadline_ms", "dedline_ms"))
        refused = edged.add_service(definition(model="liar"))
        assert refused.refused and refused.last_good
        assert refused.report.state == "ready" and refused.report.model == "brightness@1"
        assert inspect(edged.status().addresses.inference).label == "dark"
        broken = edged.add_service(definition("other", "liar"))
        wait_for(lambda: edged.service("solder").report.inspected == 1)  # type: ignore[union-attr] # outlives the swap
        assert broken.report.state == "failed" and broken.report.detail
        assert edged.service("solder").report.state == "ready"  # type: ignore[union-attr]
        wait_for(lambda: {"service.other", "service.solder"} <= {item.code for item in edged.status().health.items}, 15)
        assert edged.client.delete("/services/other", Done, 60).text
        with pytest.raises(ApiError, match="used by solder"):
            edged.client.delete("/models/brightness@1", Done)


def test_a_second_daemon_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with Edged(tmp_path / "state") as first:
        second = Edged(tmp_path / "state", wait=False)
        assert second.process.wait(20) == 1
        assert f"another edged (process {first.process.pid}) already uses" in second.log
        assert first.status().version


def test_sighup_says_what_needs_a_restart(tmp_path: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        (tmp_path / "state" / "edged.toml").write_text('name = "renamed"\n')
        edged.process.send_signal(signal.SIGHUP)
        wait_for(lambda: any(item.code == "config" for item in edged.status().health.items))
        (tmp_path / "state" / "edged.toml").write_text("nmae = 1\n")
        edged.process.send_signal(signal.SIGHUP)
        wait_for(lambda: any("nmae" in item.text for item in edged.status().health.items))


async def test_desired_state_brings_the_model_and_the_service(tmp_path: Path, package: Path) -> None:
    cloud = Cloud(tmp_path / "cloud")
    await cloud.start()
    cloud.add_model("brightness", "1", package)
    cloud.desired = Desired(revision="r1", services=[definition()])
    try:
        with await asyncio.to_thread(Edged, tmp_path / "state") as edged:
            body = JoinBody(token=cloud.invite().text(), url=cloud.url, name="line-3")
            reply = await asyncio.to_thread(edged.client.post, "/join", JoinReply, body, 60.0)
            assert reply.url == cloud.url
            service = await asyncio.to_thread(edged.wait_ready, "solder")
            assert service.origin == "cloud" and service.report.model == "brightness@1"
            async with asyncio.timeout(20):
                while not (cloud.reports and [r.state for r in cloud.reports[-1].services] == ["ready"]):
                    await asyncio.sleep(0.1)
            assert cloud.reports[-1].revision == "r1"
            status = await asyncio.to_thread(edged.status)
            assert status.cloud.up and status.name == "line-3" and status.cloud.authority
            assert "its download is dropped" not in edged.log, "what has come is not fetched again"
            worker = status.worker.pid
            await cloud.stop()
            await cloud.start(cloud.port)  # the link returns: the same revision changes nothing
            async with asyncio.timeout(30):
                while not cloud.hellos or cloud.hellos[-1].revision != "r1":
                    await asyncio.sleep(0.1)
            await asyncio.sleep(0.5)
            assert (await asyncio.to_thread(edged.status)).worker.pid == worker
    finally:
        await cloud.stop()


async def test_cloudd_hears_what_the_device_does_not_follow(tmp_path: Path, package: Path) -> None:
    cloud = Cloud(tmp_path / "cloud")
    await cloud.start()
    theirs = definition("other") + '[[outputs]]\npath = "/etc/motd"\n'
    cloud.desired = Desired(revision="r1", services=[definition(deadline=9000), theirs])
    try:
        with await asyncio.to_thread(Edged, tmp_path / "state", "--name", "line-3") as edged:
            await asyncio.to_thread(edged.add_model, package)
            await asyncio.to_thread(edged.add_service, definition())
            body = JoinBody(token=cloud.invite().text(), url=cloud.url)
            await asyncio.to_thread(edged.client.post, "/join", JoinReply, body, 60.0)
            async with asyncio.timeout(20):
                while not (cloud.reports and len(cloud.reports[-1].problems) == 2):
                    await asyncio.sleep(0.1)
            refused, conflict = cloud.reports[-1].problems
            assert "/etc/motd" in refused and f"{tmp_path}/state/outputs, /var/spool/edged" in refused
            assert "edged services remove solder" in conflict
            assert cloud.reports[-1].revision == "" and cloud.hellos[-1].name == "line-3"
            assert (await asyncio.to_thread(edged.client.get, "/services/solder", dict))["text"] == definition()
            await asyncio.to_thread(edged.client.delete, "/services/solder", Done, 60.0)
            service = await asyncio.to_thread(edged.wait_ready, "solder")
            assert (service.origin, service.deadline_ms) == ("cloud", 9000.0)
    finally:
        await cloud.stop()


async def test_a_kill_after_the_desired_state_is_applied_loses_nothing(tmp_path: Path, package: Path) -> None:
    cloud = Cloud(tmp_path / "cloud")
    await cloud.start()
    cloud.add_model("brightness", "1", package)
    cloud.desired = Desired(revision="r1", services=[definition()])
    try:
        with await asyncio.to_thread(Edged, tmp_path / "state", crash_at="supervisor.desired-applied") as edged:
            body = JoinBody(token=cloud.invite().text(), url=cloud.url)
            await asyncio.to_thread(edged.client.post, "/join", JoinReply, body, 60.0)
            await asyncio.to_thread(edged.wait_crash)
        with await asyncio.to_thread(Edged, tmp_path / "state") as edged:
            await asyncio.to_thread(edged.wait_ready, "solder")
    finally:
        await cloud.stop()


def test_the_wrong_key_is_shown_and_the_right_one_heals_by_itself(tmp_path: Path, package: Path) -> None:
    state = tmp_path / "state"

    def samples(edged: Edged) -> list[str]:
        return [sample.state for sample in edged.client.get("/spool", list[SpooledSample])]

    with Edged(state) as edged:
        edged.add_model(package)
        edged.add_service(definition() + '[hard_samples]\nanswer_model = "large"\n')
        for _ in range(3):
            assert inspect(edged.status().addresses.inference).spooled
        assert edged.stop() == 0
    right = (state / "keys" / "kek").read_bytes()
    (state / "keys" / "kek").write_bytes(b"w" * 32)
    with Edged(state) as edged:
        wait_for(lambda: "does not open 3 waiting samples" in edged.status().health.verdict)
        assert edged.status().health.level == "error" and samples(edged) == ["unreadable"] * 3
        findings = {finding.id: finding for finding in edged.client.get("/doctor", list[Finding], 60.0)}
        assert findings["key"].level == "error" and "3 waiting samples" in findings["key"].text
        assert edged.stop() == 0
    (state / "keys" / "kek").write_bytes(right)
    with Edged(state) as edged:
        edged.wait_ready("solder")
        assert samples(edged) == ["waiting"] * 3 and edged.status().health.items == []


def test_a_missing_model_is_named_without_a_cloud(tmp_path: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        before = time.monotonic()
        service = edged.add_service(definition(model="absent"))
        assert time.monotonic() - before < 30
        assert service.report.state == "loading"
        assert "edged models add" in service.report.detail
