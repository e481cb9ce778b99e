"""Swaps of a real daemon: keep-alive clients stay connected, the new model is compared, memory comes back."""

from __future__ import annotations

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
from support.detectors import board, make_detector
from support.edged import Edged, wait_for
from support.models import make_package, picture

from edged.api import ApiError, Done, ServeBody
from edged.status.state import ModelState, ServedState
from edgekit.messages import Decision
from edgekit.packages import seal_package


def definition(deadline: int = 5000, model: str = "brightness") -> str:
    return f'name = "solder"\nmodel = "{model}"\ndeadline_ms = {deadline}\n[hard_samples]\nmode = "off"\n'


class KeepAlive(threading.Thread):
    """A client that asks on one connection for ever, with a pause, and counts how often it had to connect again."""

    def __init__(self, address: str, pause_s: float) -> None:
        super().__init__(daemon=True)
        host, _, port = address.rpartition(":")
        self._address, self._pause_s = (host, int(port)), pause_s
        self._ending = threading.Event()
        self.answered, self.connected = 0, 0
        self.failures: list[str] = []
        self.slowest_s = 0.0

    def run(self) -> None:
        body = picture(0.1)
        while not self._ending.is_set():
            connection = http.client.HTTPConnection(*self._address, timeout=30)
            self.connected += 1
            try:
                connection.connect()
                while not self._ending.wait(self._pause_s):
                    began = time.monotonic()
                    connection.request("POST", "/v1/services/solder/inspect", body, {"Content-Type": "image/png"})
                    response = connection.getresponse()
                    data = response.read()
                    if response.status != 200:
                        self.failures.append(f"{response.status} {data[:200]!r}")
                    self.answered += 1
                    self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                    if response.will_close:
                        break
            except OSError as error:
                self.failures.append(repr(error))
            except http.client.HTTPException as error:
                self.failures.append(repr(error))
            finally:
                connection.close()

    def end(self) -> None:
        self._ending.set()
        self.join(30)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package").root


def test_no_keep_alive_client_is_disconnected_by_a_swap(tmp_path: Path, package: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        edged.add_service(definition())
        address = edged.status().addresses.inference
        clients = [KeepAlive(address, pause) for pause in (0.0, 0.002, 0.05, 0.5)]
        for client in clients:
            client.start()
        wait_for(lambda: all(client.answered for client in clients))
        workers = {edged.status().worker.pid}
        for number in range(4):
            edged.add_service(definition(5001 + number))
            workers.add(edged.status().worker.pid)
        asked = [client.answered for client in clients]
        wait_for(lambda: all(client.answered > before + 2 for client, before in zip(clients, asked, strict=True)))
        for client in clients:
            client.end()
        assert len(workers) == 5
        assert [client.failures for client in clients] == [[]] * 4
        assert [client.connected for client in clients] == [1] * 4
        assert edged.status().worker.restarts == 0


def test_a_client_that_is_silent_during_the_swap_is_answered_by_the_successor(tmp_path: Path, package: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        edged.add_service(definition())
        host, _, port = edged.status().addresses.inference.rpartition(":")
        silent = [http.client.HTTPConnection(host, int(port), timeout=30) for _ in range(40)]
        for connection in silent:
            connection.connect()
        half = socket.create_connection((host, int(port)))
        half.sendall(b"GET /v2/health/li")  # the start of a request is no idle connection: it may finish
        first = edged.status().worker.pid
        edged.add_service(definition(5001))
        half.sendall(b"ve HTTP/1.1\r\nHost: x\r\n\r\n")
        assert half.recv(100).startswith(b"HTTP/1.1 200")
        half.close()
        assert first is not None
        wait_for(lambda: not psutil.pid_exists(first), 20)
        for connection in silent:
            connection.request("GET", "/v2/health/ready")
            response = connection.getresponse()
            assert (response.status, response.read(), response.will_close) == (200, b"", False)
            connection.close()


def test_a_new_model_is_compared_on_what_the_one_before_pins(tmp_path: Path, package: Path) -> None:
    flipped = make_package(tmp_path / "flipped", version="2", flip=True).root
    alike = make_package(tmp_path / "alike", version="3", flip=True).root
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        edged.add_service(definition())
        edged.add_model(flipped)
        wait_for(lambda: edged.wait_ready("solder").report.model == "brightness@2")
        service = edged.service("solder")
        assert service is not None
        assert "brightness@2 agrees with brightness@1 on 0 of 2 of its pinned samples" in service.comparison
        assert 'samples/0.png was "dark" and is now "bright"' in service.comparison
        edged.add_model(alike)
        wait_for(lambda: edged.wait_ready("solder").report.model == "brightness@3")
        assert "agrees with brightness@2 on 2 of 2 of its pinned samples" in edged.log


def test_a_new_detector_takes_over_and_is_compared_box_by_box(tmp_path: Path) -> None:
    spots = board((1, 2, "short", 0.9), (6, 5, "open", 0.6))

    def found(edged: Edged) -> list[str]:
        host, _, port = edged.status().addresses.inference.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request("POST", "/v1/services/shorts/inspect", spots)
        decision = msgspec.json.decode(connection.getresponse().read(), type=Decision)
        connection.close()
        return [region.label for region in decision.regions]

    with Edged(tmp_path / "state") as edged:
        edged.add_model(make_detector(tmp_path / "first").root)
        edged.add_service('name = "shorts"\ntask = "detection"\nmodel = "cells"\ndeadline_ms = 5000\n')
        assert found(edged) == ["short", "open"]
        edged.add_model(make_detector(tmp_path / "second", version="2", gain=0.6, samples=False).root)
        wait_for(lambda: edged.wait_ready("shorts").report.model == "cells@2")
        assert found(edged) == ["short"]
        service = edged.service("shorts")
        assert service is not None
        assert "cells@2 agrees with cells@1 on 1 of 3 of its pinned samples" in service.comparison
        assert 'bad.png had "short" at 16, 32, 32, 48 and has it no more' in service.comparison


def test_a_model_is_served_without_a_service_and_comes_back_after_a_restart(tmp_path: Path, package: Path) -> None:
    state = tmp_path / "state"
    with Edged(state) as edged:
        ref = edged.add_model(package)

        def ready() -> int:
            host, _, port = edged.status().addresses.inference.rpartition(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            connection.request("GET", "/v2/models/brightness/ready")
            status = connection.getresponse().status
            connection.close()
            return status

        assert ready() == 400
        served = edged.client.post("/served", ServedState, ServeBody(ref="brightness"), 60)
        assert (served.model, served.state) == (ref, "ready")
        assert ready() == 200
        assert [model.served for model in edged.client.get("/models", list[ModelState])] == [True]
        with pytest.raises(ApiError, match="edged models unserve"):
            edged.client.delete(f"/models/{ref}", Done)
        with pytest.raises(ApiError, match="nope is not installed"):
            edged.client.post("/served", ServedState, ServeBody(ref="nope"), 60)
        with pytest.raises(ApiError, match="not served without a service"):
            edged.client.delete("/served/nope", Done)
        edged.kill()
    with Edged(state) as edged:
        wait_for(lambda: [state.state for state in edged.status().served] == ["ready"], 30)
        assert ready() == 200
        assert "no longer served" in edged.client.delete("/served/brightness", Done, 60).text
        assert ready() == 400
        assert edged.status().served == []
        assert (state / "management-token").stat().st_mode & 0o777 == 0o600
        assert edged.stop() == 0


def ready_worker(edged: Edged) -> int:
    """Its process id."""
    wait_for(lambda: edged.status().worker.state == "ready")
    pid = edged.status().worker.pid
    assert pid is not None
    return pid


def test_who_hears_that_a_swap_is_done_never_meets_the_worker_before(tmp_path: Path, package: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        host, _, port = edged.status().addresses.inference.rpartition(":")
        old = ready_worker(edged)
        before = http.client.HTTPConnection(host, int(port), timeout=30)
        before.request("GET", "/v2/health/live")
        before.getresponse().read()
        os.kill(old, signal.SIGSTOP)  # it will see that it has a successor whenever it goes on
        try:
            served: list[ServedState] = []
            body = ServeBody(ref="brightness")
            asking = threading.Thread(
                target=lambda: served.append(edged.client.post("/served", ServedState, body, 60)), daemon=True
            )
            asking.start()
            wait_for(lambda: edged.status().worker.pid != old)
            asking.join(1.0)
            assert served == [], "the worker before still has the inference address"
        finally:
            os.kill(old, signal.SIGCONT)
        asking.join(30)
        assert [one.state for one in served] == ["ready"]
        fresh = http.client.HTTPConnection(host, int(port), timeout=30)
        for connection in (fresh, before):  # one that connects now, and one that was idle meanwhile
            connection.request("GET", "/v2/models/brightness/ready")
            assert connection.getresponse().status == 200
            connection.close()


def test_a_worker_that_hangs_when_it_should_leave_holds_up_no_swap(tmp_path: Path, package: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        old = ready_worker(edged)
        os.kill(old, signal.SIGSTOP)
        began = time.monotonic()
        assert edged.client.post("/served", ServedState, ServeBody(ref="brightness"), 60).state == "ready"
        assert time.monotonic() - began < 15
        assert edged.status().worker.pid != old
        os.kill(old, signal.SIGKILL)


def test_a_client_with_the_token_has_models_loaded_and_unloaded(tmp_path: Path, package: Path) -> None:
    broken = make_package(tmp_path / "broken", "broken", samples=False)
    (broken.root / "model.onnx").write_bytes(b"no model")
    seal_package(broken.root, msgspec.structs.replace(broken.manifest, files={}))
    state = tmp_path / "state"
    with Edged(state) as edged:
        edged.add_model(package)
        edged.add_model(broken.root)
        host, _, port = edged.status().addresses.inference.rpartition(":")
        token = (state / "management-token").read_text().strip()
        connection = http.client.HTTPConnection(host, int(port), timeout=60)  # one for all: it lives through the swaps

        def ask(what: str, shown: str = token) -> tuple[int, bytes]:
            connection.request("POST", f"/v2/repository/models/{what}", b"{}", {"Edged-Management": shown})
            response = connection.getresponse()
            return response.status, response.read()

        def ready() -> int:
            connection.request("GET", "/v2/models/brightness/ready")
            response = connection.getresponse()
            response.read()
            return response.status

        assert ask("brightness/load", "wrong")[0] == 403
        assert edged.status().served == []
        assert ask("brightness/load") == (200, b"")
        assert ready() == 200
        assert [one.model for one in edged.status().served] == ["brightness@1"]
        status, text = ask("broken/load")
        assert status == 400 and b"broken@1 is not served" in text
        assert b"not installed" in ask("nope/load")[1]
        assert [one.model for one in edged.status().served] == ["brightness@1"], "a failed try leaves nothing behind"
        assert ask("brightness/unload")[0] == 200
        assert ready() == 400
        connection.close()


def test_a_killed_worker_answers_again_within_three_seconds_and_refuses_nobody(tmp_path: Path, package: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        edged.add_service(definition(30_000))
        host, _, port = edged.status().addresses.inference.rpartition(":")
        refused: list[str] = []
        over = threading.Event()

        def knock() -> None:
            while not over.wait(0.01):
                try:
                    socket.create_connection((host, int(port)), timeout=30).close()
                except OSError as error:
                    refused.append(repr(error))

        loads = [KeepAlive(f"{host}:{port}", 0.005) for _ in range(2)]
        knocking = threading.Thread(target=knock, daemon=True)
        for thread in (*loads, knocking):
            thread.start()
        wait_for(lambda: all(load.answered for load in loads))
        recoveries = []
        body = picture(0.1)
        for _ in range(2):
            pid = edged.status().worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            while True:
                connection = http.client.HTTPConnection(host, int(port), timeout=30)
                try:
                    connection.request("POST", "/v1/services/solder/inspect", body, {"Content-Type": "image/png"})
                    answer = connection.getresponse()
                    assert msgspec.json.decode(answer.read(), type=Decision).label == "dark"
                    break
                except ConnectionError:
                    continue  # it was connected to the worker that has just ended
                finally:
                    connection.close()
            recoveries.append(time.monotonic() - began)
            wait_for(lambda: edged.status().worker.state == "ready")
        over.set()
        for load in loads:
            load.end()
        knocking.join(30)
        assert refused == []
        # On a machine that is busy with something else, everything takes so many times as long.
        crowded = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
        assert min(recoveries) < 3.0 * crowded, recoveries
        assert max(recoveries) < 3.5 * crowded, "the second restart in a minute waits for half a second"


def test_thirty_swaps_leave_no_memory_behind(tmp_path: Path, package: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        edged.add_model(package)
        edged.add_service(definition())
        supervisor = psutil.Process(edged.process.pid)
        sizes: list[int] = []
        workers: list[int] = []
        for number in range(30):
            edged.add_service(definition(5001 + number))
            sizes.append(supervisor.memory_info().rss)
            pid = edged.status().worker.pid
            assert pid is not None
            workers.append(psutil.Process(pid).memory_info().rss)
        wait_for(lambda: len(supervisor.children()) == 1)
        open_files = supervisor.num_fds()
        assert open_files < 40
        assert sizes[-1] - sizes[4] < 4 << 20, [size >> 20 for size in sizes]
        assert max(workers[-5:]) - max(workers[:5]) < 8 << 20, [size >> 20 for size in workers]
