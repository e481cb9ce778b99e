"""kill -9 of every process, in mid-traffic and at every named crash point: nothing lost, nothing half-written.

`SCENARIOS` is the table: each crash point with the story that leads real daemons there. The rooms' own tests walk the
same points in finer steps (every pass, every order): tests/edged/test_spool.py, tests/edged/test_capture_folder.py,
tests/edged/test_link_sync.py, tests/edgekit/test_identity_store.py, tests/edgekit/test_packages.py,
tests/cloudd/test_answers.py, tests/cloudd/test_devices_enrol.py, tests/cloudd/test_registry.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.daemons import REPOSITORY
from tests.support.edged import wait_for
from tests.support.models import make_package, picture
from tests.support.stage import (
    DEADLINE_MS,
    EASY,
    SLACK_S,
    Plant,
    Template,
    assert_whole,
    died,
    gone,
    wait_for_api,
)

CRASH = "EDGED_CRASH_AT"
_POINT = re.compile(r"crash_point\(\s*\"([^\"]+)\"")


# --- joining ---------------------------------------------------------------------------------------------------------


def device_dies_joining(template: Template, point: str) -> None:
    """The device dies with its certificate in hand. The same token brings it in, and it is one device."""
    with Plant(template, device=False) as plant:
        plant.cloud.start()
        token = plant.cloud.invite("press-7")
        plant.edge.environ[CRASH] = point
        plant.edge.start(wait=False)
        wait_for_api(plant.edge)
        lost = plant.edge.command("join", token, "--url", plant.cloud.url)
        assert lost.returncode == 3 and lost.stderr.startswith("edged: edged "), lost
        died(plant.edge)
        plant.edge.environ[CRASH] = ""
        plant.edge.start(wait=False)
        wait_for_api(plant.edge)
        assert plant.edge.status().cloud.joined == (point == "identity.swapped")
        joins_once(plant, token)


def cloudd_dies_letting_a_device_in(template: Template, point: str) -> None:
    """cloudd dies with the token spent, before or after the device is written. The same token works, once."""
    with Plant(template, device=False) as plant:
        plant.cloud.environ[CRASH] = point
        plant.cloud.start()
        token = plant.cloud.invite("press-7")
        plant.edge.start(wait=False)
        wait_for_api(plant.edge)
        lost = plant.edge.command("join", token, "--url", plant.cloud.url)
        assert lost.returncode == 1 and lost.stderr.startswith("edged: https://127.0.0.1"), lost
        died(plant.cloud)
        assert not plant.edge.status().cloud.joined
        plant.cloud.environ[CRASH] = ""
        plant.cloud.start()
        joins_once(plant, token)
        assert_whole(cloud=plant.cloud)


def joins_once(plant: Plant, token: str) -> None:
    again = plant.edge.command("join", token, "--url", plant.cloud.url)
    assert again.returncode == 0, again.stderr
    plant.edge.wait_for_link(True)
    newcomers = [one for one in plant.cloud.client.get("/devices") if one["name"] == "press-7"]
    assert [one["device_id"] for one in newcomers] == [plant.edge.status().device_id]
    assert newcomers[0]["online"]
    assert_whole(plant.edge)


# --- models and services ---------------------------------------------------------------------------------------------


def device_dies_adding_a_model(template: Template, point: str) -> None:
    """`edged models add`: the package is there whole or not at all, and adding it again works."""
    with Plant(template, device=False) as plant:
        plant.edge.environ[CRASH] = point
        plant.edge.start(wait=False)
        wait_for_api(plant.edge)
        lost = plant.edge.command("models", "add", str(template.small))
        assert lost.returncode in (1, 3) and lost.stderr.startswith("edged: "), lost
        died(plant.edge)
        plant.restart_edge(**{CRASH: ""})
        assert_whole(plant.edge)
        assert [model.name for model in plant.edge.status().models] == (["small"] if point == "package.renamed" else [])
        again = plant.edge.command("models", "add", str(template.small))
        assert (again.returncode, again.stdout) == (0, "Installed small@1.\n")


def cloudd_dies_adding_a_model(template: Template, point: str) -> None:
    """`cloudd models add`: files without rows are swept, and adding it again works."""
    with Plant(template, device=False) as plant:
        other = make_package(plant.place / "other", "other").root
        plant.cloud.environ[CRASH] = point
        plant.cloud.start()
        lost = plant.cloud.command("models", "add", str(other))
        assert lost.returncode == 3 and lost.stderr.startswith("cloudd: cloudd did not answer"), lost
        died(plant.cloud)
        plant.cloud.environ[CRASH] = ""
        plant.cloud.start()
        assert_whole(cloud=plant.cloud)
        assert [model["name"] for model in plant.cloud.client.get("/models")] == ["large"]
        again = plant.cloud.command("models", "add", str(other))
        assert again.returncode == 0 and again.stdout.startswith("other@1 is registered")
        assert_whole(cloud=plant.cloud)


def device_dies_fetching_a_model(template: Template, point: str) -> None:
    """`edged models pull`: the download is continued, and nothing of it stays behind."""
    with Plant(template) as plant:
        plant.edge.environ[CRASH] = f"{point}:2"
        plant.start()
        lost = plant.edge.command("models", "pull", "large")
        assert lost.returncode in (1, 3) and lost.stderr.startswith("edged: "), lost
        died(plant.edge)
        plant.restart_edge(**{CRASH: ""})
        again = plant.edge.command("models", "pull", "large")
        assert (again.returncode, again.stdout) == (0, "Fetched large@1.\n"), again
        assert_whole(plant.edge)


def device_dies_following_its_desired_state(template: Template, point: str) -> None:
    """cloudd wants a new service with a model that has to be fetched; it runs after the restart, beside the old."""
    with Plant(template) as plant:
        # The first worker of this life comes before the change, so these points are passed once before.
        before = 2 if point in ("supervisor.worker-ready", "supervisor.swapped") else 1
        plant.edge.environ[CRASH] = f"{point}:{before}"
        plant.start()
        wanted = plant.place / "wanted.toml"
        wanted.write_text('name = "wanted"\nmodel = "large"\n')
        told = plant.cloud.command("devices", "desired", "line-1", str(wanted))
        assert told.returncode == 0, told.stderr
        died(plant.edge)
        plant.restart_edge(**{CRASH: ""})
        wait_for(lambda: runs(plant, "wanted"), 60.0)
        assert runs(plant, "solder") and runs(plant, "every")
        assert plant.edge.inspect("wanted", picture(0.9)).label == "bright"
        assert (plant.edge.state_dir / "services" / "wanted.toml").read_text() == wanted.read_text()
        wait_for(lambda: plant.cloud.client.get("/devices/line-1")["device"]["in_sync"])
        assert_whole(plant.edge)


def runs(plant: Plant, service: str) -> bool:
    status = plant.edge.status()
    return any(one.name == service and one.report.state == "ready" for one in status.services)


# --- hard samples ----------------------------------------------------------------------------------------------------


def worker_dies_spooling(template: Template, point: str) -> None:
    """The worker dies at every third sample, then the power fails: what was said to be spooled arrives, once."""
    with Plant(template) as plant:
        plant.edge.environ[CRASH] = f"{point}:3"
        plant.cloud.start()
        url = plant.cloud.url
        plant.cloud.kill()
        plant.start_edge(url, wait_for_link=False)
        acknowledged = set()
        while len(acknowledged) < 3 or plant.edge.status().worker.restarts == 0:
            decision = plant.send()  # a request that dies with the worker is sent again, as a client would
            if decision.spooled:
                acknowledged.add(decision.sample_id)
        plant.kill_edge()
        plant.cloud.start()
        plant.restart_edge(**{CRASH: ""})
        check_delivered(plant, acknowledged)


def worker_dies_delivering(template: Template, point: str) -> None:
    """The worker dies at every second delivery, between cloudd's answer and the end of the sample's removal."""
    with Plant(template) as plant:
        plant.cloud.start()
        url = plant.cloud.url
        plant.cloud.kill()
        plant.start_edge(url, wait_for_link=False)
        decisions = [plant.send() for _ in range(5)]
        assert all(decision.spooled for decision in decisions)
        plant.kill_edge()
        plant.cloud.start()
        plant.restart_edge(**{CRASH: f"{point}:2"})
        plant.edge.wait_for(lambda: plant.edge.status().worker.restarts > 0, "to lose its worker")
        plant.kill_edge()
        plant.restart_edge(**{CRASH: ""})
        check_delivered(plant, {decision.sample_id for decision in decisions})


def check_delivered(plant: Plant, wanted: set[str]) -> None:
    plant.wait_drained()
    arrived = plant.arrived()
    assert wanted <= arrived.keys(), f"lost: {wanted - arrived.keys()}"
    assert set(arrived.values()) == {1}
    assert_whole(plant.edge, plant.cloud)


def worker_dies_over_a_folder(template: Template, point: str) -> None:
    """The worker dies at its second file, then the power fails: every file is decided, written and moved once."""
    with Plant(template) as plant:
        folder, output = plant.place / "in", plant.place / "decisions.jsonl"
        folder.mkdir()
        for number in range(6):
            (folder / f"board-{number}.png").write_bytes(picture(EASY, seed=number))
        plant.edge.environ[CRASH] = f"{point}:2"
        plant.start_edge("https://127.0.0.1:1", wait_for_link=False)
        text = f'name = "watch"\nmodel = "small"\n[source]\nkind = "folder"\npath = "{folder}"\n'
        text += f'[[outputs]]\npath = "{output}"\n'
        definition = plant.place / "watch.toml"
        definition.write_text(text)
        plant.edge.command("services", "add", str(definition))
        plant.edge.wait_for(lambda: plant.edge.status().worker.restarts > 0, "to lose its worker")
        plant.kill_edge()
        assert len(list((folder / "done").glob("*.png"))) < 6
        plant.restart_edge(**{CRASH: ""})
        plant.edge.wait_for(lambda: len(list((folder / "done").glob("*.png"))) == 6, "to work through the folder")
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert sorted(line["serial"] for line in lines) == [f"board-{number}" for number in range(6)]
        assert not list(folder.glob("*.png"))
        assert_whole(plant.edge)


def answer_worker_dies(template: Template, point: str) -> None:
    """cloudd's answer worker dies at every third sample: the line hears "busy", and the sample is answered later."""
    with Plant(template) as plant:
        plant.cloud.environ[CRASH] = f"{point}:3"
        plant.start()
        decisions = [plant.send() for _ in range(7)]
        assert any(decision.spooled for decision in decisions)
        check_delivered(plant, {decision.sample_id for decision in decisions})


def cloudd_dies_keeping_an_answer(template: Template, point: str) -> None:
    """cloudd dies before or after the answer's row: the sample is spooled, and at cloudd once in the end."""
    with Plant(template) as plant:
        plant.cloud.environ[CRASH] = f"{point}:2"
        plant.start()
        decisions = [plant.send() for _ in range(4)]
        died(plant.cloud)
        assert all(decision.spooled for decision in decisions if decision.decided != "cloud")
        plant.cloud.environ[CRASH] = ""
        plant.cloud.start()
        check_delivered(plant, {decision.sample_id for decision in decisions})


SCENARIOS: dict[str, Callable[[Template, str], None]] = {
    # the supervisor of edged
    "identity.written": device_dies_joining,
    "identity.swapped": device_dies_joining,
    "package.copied": device_dies_adding_a_model,
    "package.renamed": device_dies_adding_a_model,
    "model.chunk": device_dies_fetching_a_model,
    "supervisor.desired-written": device_dies_following_its_desired_state,
    "supervisor.files-written": device_dies_following_its_desired_state,
    "supervisor.desired-applied": device_dies_following_its_desired_state,
    "supervisor.worker-ready": device_dies_following_its_desired_state,
    "supervisor.swapped": device_dies_following_its_desired_state,
    # its worker
    "spool.written": worker_dies_spooling,
    "spool.indexed": worker_dies_spooling,
    "spool.answered": worker_dies_delivering,
    "spool.delivered": worker_dies_delivering,
    "spool.removed": worker_dies_delivering,
    "folder.decided": worker_dies_over_a_folder,
    "folder.moved": worker_dies_over_a_folder,
    # cloudd
    "invite.spent": cloudd_dies_letting_a_device_in,
    "device.enrolled": cloudd_dies_letting_a_device_in,
    "model.blobs": cloudd_dies_adding_a_model,
    "answer.blob": cloudd_dies_keeping_an_answer,
    "answer.row": cloudd_dies_keeping_an_answer,
    # its answer worker
    "answer.worker": answer_worker_dies,
}


@pytest.mark.parametrize("point", SCENARIOS)
def test_kill_9_at_a_crash_point(template: Template, point: str) -> None:
    SCENARIOS[point](template, point)


def test_the_table_names_every_crash_point_in_the_code() -> None:
    found: set[str] = set()
    calls = 0
    for package in ("edgekit", "edged", "cloudd"):
        for path in (REPOSITORY / package).rglob("*.py"):
            text = path.read_text()
            if path.name != "faults.py":
                calls += len(re.findall(r"\bcrash_point\(", text))
            found.update(_POINT.findall(text))
    assert found == SCENARIOS.keys()
    assert calls >= len(found), "every call names its point as a literal, or this test could not see it"


# --- without a crash point -------------------------------------------------------------------------------------------


def test_kill_9_of_the_supervisor_takes_the_worker_along_and_the_port_is_free_again(template: Template) -> None:
    with Plant(template) as plant:
        plant.start()
        plant.cloud.kill()
        plant.edge.wait_for(lambda: plant.send().spooled, "to spool")
        spooled = {decision.sample_id for decision in (plant.send() for _ in range(4)) if decision.spooled}
        assert spooled
        address, below = plant.edge.status().addresses.inference, plant.processes(plant.edge)
        plant.edge.kill()
        gone(below)  # and so the port is free at once
        plant.edge.start()
        assert plant.edge.status().addresses.inference == address
        assert plant.send("solder", EASY).decided == "edge"
        plant.cloud.start()
        check_delivered(plant, spooled)


class Hammer(threading.Thread):
    """A client that opens a connection for each picture. It may lose an answer, but never finds the door locked."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._ending = threading.Event()
        body = picture(EASY)
        head = "POST /v1/services/solder/inspect HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        self._request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.answered = self.lost = 0
        self.slowest_s = 0.0
        self.refused: list[OSError] = []

    def run(self) -> None:
        while not self._ending.wait(0.005):
            began = time.monotonic()
            try:
                connection = socket.create_connection(self._address, 30.0)
            except OSError as error:
                self.refused.append(error)
                continue
            with connection:
                self._ask(connection)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def _ask(self, connection: socket.socket) -> None:
        try:
            connection.sendall(self._request)
            reply = b""
            while chunk := connection.recv(65_536):
                reply += chunk
        except ConnectionError:
            self.lost += 1
            return
        if reply.startswith(b"HTTP/1.1 200"):
            self.answered += 1
        else:
            self.lost += 1

    def end(self) -> None:
        self._ending.set()
        self.join(40.0)


def test_kill_9_of_the_worker_refuses_no_connection(template: Template) -> None:
    with Plant(template) as plant:
        plant.cloud.start()
        plant.start_edge(plant.cloud.url, wait_for_link=False)
        hammers = [Hammer(plant.edge.status().addresses.inference) for _ in range(3)]
        for hammer in hammers:
            hammer.start()
        try:
            for kill in (1, 2):
                wait_for(lambda: all(hammer.answered > 20 for hammer in hammers))
                os.kill(plant.worker_pid, signal.SIGKILL)
                plant.edge.wait_for(lambda: plant.edge.status().worker.restarts >= kill, "to notice")  # noqa: B023
                plant.edge.wait_for(lambda: plant.edge.status().worker.state == "ready", "to replace its worker")
                before = [hammer.answered for hammer in hammers]
                wait_for(lambda: all(h.answered > b for h, b in zip(hammers, before, strict=True)))  # noqa: B023
        finally:
            for hammer in hammers:
                hammer.end()
        assert [error for hammer in hammers for error in hammer.refused] == []
        # A request in the hands of a killed process is lost; those behind it wait in the listening socket.
        assert sum(hammer.lost for hammer in hammers) <= 2 * 2 * len(hammers)
        assert all(hammer.slowest_s < 30.0 for hammer in hammers)
        assert plant.edge.process is not None and plant.edge.process.poll() is None


def test_kill_9_of_cloudd_and_of_its_answer_worker_in_the_middle_of_traffic(template: Template) -> None:
    with Plant(template) as plant:
        plant.start()
        decisions = []

        def send_until(where: str, count: int) -> None:
            until, found = time.monotonic() + 60.0, 0
            while found < count:
                assert time.monotonic() < until, f"no answer was {where}; the last: {decisions[-1]}"
                began = time.monotonic()
                decision = plant.send()
                assert time.monotonic() - began < DEADLINE_MS / 1000 + SLACK_S
                decisions.append(decision)
                found += decision.decided == where
                time.sleep(0.05)  # a line's pace; everything that is spooled has to be delivered afterwards

        send_until("cloud", 3)
        (worker,) = [one for one in plant.processes(plant.cloud) if one.pid != plant.cloud.pid]
        assert isinstance(worker, psutil.Process)
        worker.kill()
        send_until("cloud", 3)
        below = plant.processes(plant.cloud)
        plant.cloud.kill()
        send_until("edge-degraded", 5)
        gone(below)
        plant.cloud.start()
        send_until("cloud", 3)
        assert all(decision.spooled for decision in decisions if decision.decided == "edge-degraded")
        check_delivered(plant, {decision.sample_id for decision in decisions})
        (device,) = plant.cloud.client.get("/devices")
        assert device["online"]


def test_what_any_interrupted_write_leaves_is_gone_after_the_start(template: Template) -> None:
    """A kill between a temporary file and its rename can happen anywhere; the names are those that the code uses."""
    with Plant(template) as plant:
        device = [
            ".link.json.1234abcd.tmp",
            ".page-token.1234abcd.tmp",
            "services/.solder.toml.1234abcd.tmp",
            "keys/.kek.1234abcd.tmp",
            "identity/.device-key.pem.1234abcd.tmp",
            "spool/ab/.s1.1234abcd.tmp",
            "models/.incoming-1234abcd/model.onnx",
            "identity/.new-1234abcd/key.pem",
        ]
        server = [".page-token.1234abcd.tmp", "authority/.root.pem.1234abcd.tmp", "blobs/incoming/1234abcd"]
        server.append("cache/models/.incoming-1234abcd/model.onnx")
        for root, names in ((plant.edge.state_dir, device), (plant.cloud.state_dir, server)):
            for name in names:
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(b"half")
        plant.start()
        assert_whole(plant.edge, plant.cloud)
        assert plant.send().decided == "cloud"


def test_a_token_is_worth_nothing_to_a_second_device(template: Template, tmp_path: Path) -> None:
    """What lets the same device try again after a crash lets nobody else in."""
    with Plant(template, device=False) as plant, Plant(template, device=False) as thief:
        plant.cloud.start()
        token = plant.cloud.invite("press-7")
        for edge in (plant.edge, thief.edge):
            edge.start(wait=False)
            wait_for_api(edge)
        assert plant.edge.command("join", token, "--url", plant.cloud.url).returncode == 0
        refused = thief.edge.command("join", token, "--url", plant.cloud.url)
        assert refused.returncode == 1 and "token" in refused.stderr
        assert not thief.edge.status().cloud.joined
        assert isinstance(token, str) and token.startswith("edg1.")
