"""kill -9 of every process, in mid-traffic and at every named crash point: nothing lost, nothing half-written.

`STORIES` is the table: each crash point and the story that leads real daemons there, through the restart, and on. The
rooms' own tests walk the same points in finer steps (every pass, every order): tests/edged/test_spool.py,
test_collaborator_faults.py, test_capture_folder.py and test_link_sync.py, tests/edgekit/test_identity_store.py and
test_packages.py, tests/cloudd/test_answers.py, test_devices_enrol.py and test_registry.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.daemons import REPOSITORY
from tests.support.edged import wait_for
from tests.support.hammer import Hammer
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

_POINT = re.compile(r"crash_point\(\s*f?\"([^\"]+)\"")
_NAMED = re.compile(r'"((?:samples|versions|train|learning|fl|federation|retraining)\.[a-z.-]+)(?::\d+)?"')
_GAP = re.compile(r"\\{.*?\\}")
"""Escaped, what an f-string puts into a name: the steps of a protocol, say."""


def joining(template: Template) -> None:
    """Device or cloudd dies while a device joins. The same token brings it in afterwards, and it is one device."""
    with Plant(template, device=False) as plant:
        plant.cloud.start()
        token = plant.cloud.invite("press-7")

        def join() -> tuple[int, str]:
            done = plant.edge.command("join", token, "--url", plant.cloud.url)
            return done.returncode, done.stderr

        def start_edge() -> None:
            plant.edge.start(wait=False)
            wait_for_api(plant.edge)

        def joined_once() -> None:
            plant.edge.wait_for_link(True)
            newcomers = [one for one in plant.cloud.client.get("/devices") if one["name"] == "press-7"]
            assert [one["device_id"] for one in newcomers] == [plant.edge.status().device_id]
            assert newcomers[0]["online"]
            assert_whole(plant.edge, plant.cloud)

        plant.crash_edge_at("identity.written")
        start_edge()
        status, text = join()
        assert status == 3 and text.startswith("edged: edged "), text
        died(plant.edge)
        plant.crash_edge_at("identity.swapped")
        start_edge()
        assert not plant.edge.status().cloud.joined
        status, text = join()
        assert status == 3, text
        died(plant.edge)
        plant.crash_edge_at()
        start_edge()
        assert plant.edge.status().cloud.joined
        assert join() == (0, "")
        joined_once()

        for point in ("invite.spent", "device.enrolled"):
            plant.cloud.kill()
            plant.crash_cloud_at(point)
            plant.cloud.start()
            token = plant.cloud.invite("press-7")
            status, text = join()
            assert status == 1 and len(text.splitlines()) == 1, text
            died(plant.cloud)
            plant.crash_cloud_at()
            plant.cloud.start()
            assert join() == (0, "")
            joined_once()


def models(template: Template) -> None:
    """Device or cloudd dies while a model comes: it is there whole or not at all, and trying again works."""
    with Plant(template, device=False) as plant:
        other = make_package(plant.place / "other", "other").root
        token = plant.cloud.start() or plant.cloud.invite()

        def edge(*arguments: str) -> tuple[int, str]:
            done = plant.edge.command("models", *arguments)
            return done.returncode, done.stdout

        plant.crash_edge_at("package.copied")
        plant.edge.start(wait=False)
        wait_for_api(plant.edge)
        assert edge("add", str(template.small))[0] in (1, 3)
        died(plant.edge)
        plant.crash_edge_at("package.renamed")
        plant.edge.start()
        assert plant.edge.status().models == []
        assert_whole(plant.edge)
        assert edge("add", str(template.small))[0] in (1, 3)
        died(plant.edge)
        plant.crash_edge_at("model.chunk:3")
        plant.edge.start()
        assert [model.name for model in plant.edge.status().models] == ["small"]
        assert_whole(plant.edge)
        assert edge("add", str(template.small)) == (0, "Installed small@1.\n")
        assert plant.edge.command("join", token, "--url", plant.cloud.url).returncode == 0
        assert edge("pull", "large")[0] in (1, 3)
        died(plant.edge)
        plant.crash_edge_at()
        plant.edge.start()
        plant.edge.wait_for_link(True)
        assert edge("pull", "large") == (0, "Fetched large@1.\n")
        assert_whole(plant.edge)

        plant.cloud.kill()
        plant.crash_cloud_at("model.blobs")
        plant.cloud.start()
        lost = plant.cloud.command("models", "add", str(other))
        assert lost.returncode == 3 and lost.stderr.startswith("cloudd: cloudd did not answer"), lost
        died(plant.cloud)
        plant.crash_cloud_at()
        plant.cloud.start()
        assert [model["name"] for model in plant.cloud.client.get("/models")] == ["large"]
        assert_whole(cloud=plant.cloud)
        again = plant.cloud.command("models", "add", str(other))
        assert again.returncode == 0 and again.stdout.startswith("other@1 is registered")
        assert_whole(cloud=plant.cloud)


def desired_state(template: Template) -> None:
    """The supervisor dies at each step of following cloudd's wishes; after the restart they are in force.

    The first wish needs a model that has to be fetched; each one keeps the services that were there before.
    """
    # The first worker of a life comes before the wish, so its crash points are passed once before.
    steps = ["desired-written", "files-written", "desired-applied", "worker-ready:2", "swapped:2", ""]
    with Plant(template) as plant:
        plant.crash_edge_at(f"supervisor.{steps[0]}")
        plant.start()
        for number, step in enumerate(steps[1:]):
            wish = plant.place / "wish.toml"
            wish.write_text(f'name = "wish"\nmodel = "large"\ndeadline_ms = {400 + number}\n')
            told = plant.cloud.command("devices", "desired", "line-1", str(wish))
            assert told.returncode == 0, told.stderr
            died(plant.edge)
            plant.crash_edge_at(f"supervisor.{step}" if step else "")
            plant.edge.start()
            wait_for(lambda: runs(plant, "wish", 400 + number), 60.0)  # noqa: B023
            assert runs(plant, "solder", DEADLINE_MS) and runs(plant, "every", DEADLINE_MS)
            assert plant.edge.inspect("wish", picture(0.9)).label == "bright"
            assert (plant.edge.state_dir / "services" / "wish.toml").read_text() == wish.read_text()
            assert_whole(plant.edge)
            plant.edge.wait_for_link(True)
        wait_for(lambda: plant.cloud.client.get("/devices/line-1")["device"]["in_sync"])


def runs(plant: Plant, service: str, deadline_ms: float) -> bool:
    status = plant.edge.status()
    if status.worker.state != "ready" or status.worker.swapping:
        return False
    mine = [one for one in status.services if one.name == service and one.report.state == "ready"]
    return [one.deadline_ms for one in mine] == [deadline_ms]


def spool(template: Template) -> None:
    """The worker dies again and again while it stores and while it delivers, and the power fails in between.

    Every sample whose reply said that it is spooled reaches cloudd, and each is there once.
    """
    with Plant(template) as plant:
        url = plant.reserve()
        acknowledged: set[str] = set()
        for point in ("spool.written:3", "spool.indexed:3"):
            plant.crash_edge_at(point)
            plant.start_edge(url, wait_for_link=False)
            enough = len(acknowledged) + 7
            while len(acknowledged) < enough or plant.edge.status().worker.restarts == 0:
                decision = plant.send()  # what dies with the worker is sent again, as a client would
                if decision.spooled:
                    acknowledged.add(decision.sample_id)
            plant.kill_edge()
        plant.cloud.start()
        for point in ("spool.answered:2", "spool.delivered:2", "spool.removed:2"):
            plant.crash_edge_at(point)
            plant.edge.start()
            plant.edge.wait_for(lambda: plant.edge.status().worker.restarts > 0, f"to lose its worker at {point}")
            plant.kill_edge()
        plant.crash_edge_at()
        plant.edge.start()
        check_delivered(plant, acknowledged)


def check_delivered(plant: Plant, wanted: set[str]) -> None:
    plant.wait_drained()
    arrived = plant.arrived()
    assert wanted <= arrived.keys(), f"lost: {wanted - arrived.keys()}"
    assert set(arrived.values()) == {1}
    assert_whole(plant.edge, plant.cloud)


def folder(template: Template) -> None:
    """The worker dies at its second file, twice: every file is decided, written and moved once."""
    with Plant(template) as plant:
        watched, output = plant.place / "in", plant.place / "decisions.jsonl"
        total = watch_and_die(plant, f'path = "{output}"', ("folder.decided:2", "folder.moved:2"))
        done = watched / "done"
        plant.edge.wait_for(lambda: len(list(done.glob("*.png"))) == total, "to work through the folder")
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert sorted(line["serial"] for line in lines) == sorted(f"board-{number}" for number in range(total))
        assert not list(watched.glob("*.png"))
        assert_whole(plant.edge)


def outputs(template: Template) -> None:
    """The worker dies before a decision goes to a webhook, and after: each one arrives, at least once."""
    with Plant(template) as plant, webhook() as (url, taken):
        total = watch_and_die(plant, f'kind = "webhook"\nurl = "{url}"', ("output.queued:2", "output.delivered"))
        boards = {f"board-{number}" for number in range(total)}
        plant.edge.wait_for(lambda: boards == {board for _, board in taken}, "to deliver every decision")
        assert len({sample for sample, _ in taken}) == total, "a repeated decision has the same sample id"
        assert_whole(plant.edge)


def watch_and_die(plant: Plant, output: str, points: Sequence[str]) -> int:
    """Watch the folder "in" with this output, the worker dying at each point; how many files there are in the end."""
    watched = plant.place / "in"
    watched.mkdir()
    text = f'name = "watch"\nmodel = "small"\n[source]\nkind = "folder"\npath = "{watched}"\n'
    definition = plant.edge.state_dir / "services" / "watch.toml"
    definition.write_text(text + f"[[outputs]]\n{output}\n")
    total = 0
    for point in (*points, ""):
        for _ in range(5):
            (watched / f"board-{total}.png").write_bytes(picture(EASY, seed=total))
            total += 1
        plant.crash_edge_at(point)
        plant.edge.start(wait=False)
        wait_for_api(plant.edge)
        if point:
            plant.edge.wait_for(lambda: plant.edge.status().worker.restarts > 0, f"to lose its worker at {point}")
            plant.kill_edge()
    return total


@contextmanager
def webhook() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A receiver: its address, and the sample id and serial number of everything it has taken."""
    taken: list[tuple[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            decision = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            taken.append((decision["sample_id"], decision["serial"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """The test's own assertions say what matters."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/decisions", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answering(template: Template) -> None:
    """cloudd's answer worker dies at its third sample, then cloudd before and after an answer's row is written."""
    with Plant(template) as plant:
        plant.crash_cloud_at("answer.worker:3")
        plant.start()
        # Four and no more: the second worker must not get to its third sample, or an innocent one counts as poison.
        wanted = {plant.send().sample_id for _ in range(4)}
        check_delivered(plant, wanted)
        for point in ("answer.blob:2", "answer.row:2"):
            plant.cloud.kill()
            plant.crash_cloud_at(point)
            plant.cloud.start(wait=False)
            # Live samples or those from the spool lead it there, whichever comes first.
            while plant.cloud.process is not None and plant.cloud.process.poll() is None:
                decision = plant.send()
                assert decision.decided == "cloud" or decision.spooled
                wanted.add(decision.sample_id)
                time.sleep(0.1)
            died(plant.cloud)
        plant.crash_cloud_at()
        plant.cloud.start()
        check_delivered(plant, wanted)


STORIES: dict[Callable[[Template], None], tuple[str, ...]] = {
    joining: ("identity.written", "identity.swapped", "invite.spent", "device.enrolled"),
    models: ("package.copied", "package.renamed", "model.chunk", "model.blobs"),
    desired_state: (
        "supervisor.desired-written",
        "supervisor.files-written",
        "supervisor.desired-applied",
        "supervisor.worker-ready",
        "supervisor.swapped",
    ),
    spool: ("spool.written", "spool.indexed", "spool.answered", "spool.delivered", "spool.removed"),
    folder: ("folder.decided", "folder.moved"),
    outputs: ("output.queued", "output.delivered"),
    answering: ("answer.worker", "answer.blob", "answer.row"),
}

ELSEWHERE = (
    "tests/edged/samples/test_samples_crash.py",
    "tests/edged/train/test_train_process.py",
    "tests/edged/train/test_train_cloud.py",
    "tests/edged/learning/test_learning_crash.py",
    "tests/edged/federation/test_fl_crashes.py",
    "tests/edged/federation/test_fl_processes.py",
    "tests/edged/federation/test_fl_sites.py",
    "tests/cloudd/federation/test_federation_killed.py",
    "tests/cloudd/retraining/test_retraining_killed.py",
)
"""Tests that kill a process of their own at each of their room's points: no daemon need be up for them."""


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_kill_9_at_every_crash_point(template: Template, story: Callable[[Template], None]) -> None:
    story(template)


def test_the_table_names_every_crash_point_in_the_code() -> None:
    found: set[str] = set()
    calls = literals = 0
    for package in ("edgekit", "edged", "cloudd"):
        for path in (REPOSITORY / package).rglob("*.py"):
            if path.name != "faults.py":
                text = path.read_text()
                calls += len(re.findall(r"\bcrash_point\(", text))
                literals += len(_POINT.findall(text))
                found.update(_POINT.findall(text))
    assert calls == literals, "a crash point is named by a literal, or this test cannot see it"
    walked = {point for points in STORIES.values() for point in points}
    for file in ELSEWHERE:
        walked.update(_NAMED.findall((REPOSITORY / file).read_text()))
    shapes = {name: re.compile(_GAP.sub(r"[a-z-]+", re.escape(name))) for name in found}
    for name, shape in shapes.items():
        assert any(shape.fullmatch(point) for point in walked), f"no test kills at {name}"
    for point in walked:
        assert any(shape.fullmatch(point) for shape in shapes.values()), f"{point} is nowhere in the code"


def test_each_story_passes_its_points() -> None:
    """A point that is only in the table would never be reached."""
    text = Path(__file__).read_text()
    for story, points in STORIES.items():
        begin = text.index(f"def {story.__name__}(")
        body = text[begin : text.index("\n\n\n", begin)]
        for point in points:
            assert point.removeprefix("supervisor.") in body, f"{story.__name__} does not mention {point}"


# --- without a crash point -------------------------------------------------------------------------------------------


def test_kill_9_of_the_supervisor_takes_the_worker_along_and_the_port_is_free_again(template: Template) -> None:
    with Plant(template) as plant:
        plant.start_edge(plant.reserve(), wait_for_link=False)
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


def test_kill_9_of_the_worker_refuses_no_connection(template: Template) -> None:
    with Plant(template) as plant:
        plant.start_edge("https://127.0.0.1:1", wait_for_link=False)
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
        wait_for(lambda: plant.send().decided == "cloud")
