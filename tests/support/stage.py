"""Whole plants for end-to-end tests: a cloudd and a device that have worked together before, made once and copied.

The device has the model `small` and two services on it: `solder` trusts easy pictures and asks the cloud's model
`large` about the hardest 40 % (it knows what is hard already), `every` sends all it gets, because it calibrates for
ever. How a picture of some brightness is judged is said in `tests.support.models`.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import psutil

from benchmarks.daemons import Cloud, Edge
from benchmarks.faulty_link import FaultyLink
from edged.client import NotRunning
from edged.collab.spool_view import SpooledSample
from edgekit.messages import Decision
from edgekit.packages import open_package
from tests.support.edged import wait_for
from tests.support.models import make_package, picture

DEADLINE_MS = 500.0
SLACK_S = 1.0
"""A request may take this much longer than its deadline at the client: two cores are shared with other test runs."""
EASY, HARD = 0.1, 0.5
SERVICES = (
    f"""
name = "solder"
model = "small"
deadline_ms = {DEADLINE_MS}
[hard_samples]
mode = "budget"
budget = 0.4
audit_share = 0.0
answer_model = "large"
""",
    f"""
name = "every"
model = "small"
deadline_ms = {DEADLINE_MS}
[hard_samples]
mode = "risk"
calibration = 1000000
answer_model = "large"
""",
)
_CRASH = "EDGED_CRASH_AT"
_WARM_UP = 60
_LEFTOVERS = re.compile(r"\.tmp$|^\.incoming-|^\.new-|^\.download-")
_GONE_S = 15.0


class Template:
    """The states of a cloudd and a device that were stopped in good order, and the packages they use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.small = make_package(folder / "packages" / "small", "small").root
        self.large = make_package(folder / "packages" / "large", "large", sharpness=200.0).root
        cloud, edge = Cloud(folder / "cloud"), Edge(folder / "edge", "line-1")
        try:
            cloud.start()
            cloud.add_model(self.large)
            edge.start()
            edge.join(cloud)
            edge.add_model(self.small)
            for text in SERVICES:
                edge.add_service(text)
            decisions = [edge.inspect("solder", tone(number)) for number in range(_WARM_UP)]
            sent = sum(decision.sent is not None for decision in decisions)
            # The first may have found the breaker still open and waited in the spool.
            wait_for(lambda: cloud.status()["totals"]["answered"] == sent)
        finally:
            edge.stop()
            cloud.stop()


class Plant:
    """A copy of the template (or an empty place) to start and break daemons in; the block ends them all by their ids.

    `device=False` gives a device that has never run.
    """

    def __init__(self, template: Template, *, device: bool = True, config: str = "", place: Path | None = None) -> None:
        self.template = template
        self.place = place or Path(tempfile.mkdtemp(prefix="e2e-"))
        self._own = place is None
        _copy(template.folder / "cloud", self.place / "cloud")
        if device:
            _copy(template.folder / "edge", self.place / "edge")
        self.cloud = Cloud(self.place / "cloud")
        self.edge = Edge(self.place / "edge", "line-1", config=config)
        self.link: FaultyLink | None = None
        self._seen: dict[int, psutil.Process] = {}
        self._number = 0

    # --- running ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Both daemons, the device at cloudd's new address."""
        self.cloud.start()
        self.start_edge(self.cloud.url)

    def start_relayed(self) -> FaultyLink:
        """Both daemons and a relay between them whose faults can be switched."""
        self.cloud.start()
        target = urlsplit(self.cloud.url)
        self.link = FaultyLink(str(target.hostname), int(target.port or 0))
        self.start_edge(f"https://127.0.0.1:{self.link.port}")
        return self.link

    def start_edge(self, url: str, *, wait_for_link: bool = True) -> None:
        """The device, which knows cloudd at `url` and nowhere else."""
        self.know(url)
        self.edge.start()
        self.pin_ports()
        if wait_for_link:
            self.wait_for_link()

    def reserve(self) -> str:
        """The URL that cloudd will have: it gets a port that is free now."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.cloud.listen = f"127.0.0.1:{taken.getsockname()[1]}"
        return f"https://{self.cloud.listen}"

    def know(self, url: str) -> None:
        """Let the stopped device remember cloudd at this address, as after a DHCP server gave it another one."""
        path = self.edge.state_dir / "link.json"
        known = json.loads(path.read_text())
        path.write_text(json.dumps({**known, "url": url, "manual": ""}))

    def pin_ports(self) -> None:
        """Let the device listen on its present port after a restart, too."""
        config = self.edge.state_dir / "edged.toml"
        first, separator, rest = config.read_text().partition("[page]")
        inference = self.edge.status().addresses.inference
        config.write_text(first.replace('"127.0.0.1:0"', f'"{inference}"') + separator + rest)

    def wait_for_link(self) -> None:
        """Until the control channel is up and live samples may ask."""
        wait_for(self._linked, 60.0)

    def _linked(self) -> bool:
        status = self.edge.status()
        return status.cloud.up and status.worker.breaker == "closed"

    def crash_edge_at(self, point: str = "") -> None:
        """Let the device's next life end at a crash point ("" for none)."""
        self.edge.environ[_CRASH] = point

    def crash_cloud_at(self, point: str = "") -> None:
        """Let cloudd's next life end at a crash point ("" for none)."""
        self.cloud.environ[_CRASH] = point

    def kill_edge(self) -> None:
        """SIGKILL, and wait until the worker is gone, too."""
        below = self.processes(self.edge, freeze=True)
        self.edge.kill()
        gone(below)

    def processes(self, daemon: Cloud | Edge, *, freeze: bool = False) -> list[psutil.Process]:
        """The daemon and every process below it; remembered, so that the end can check that none is left.

        `freeze`: it is about to be killed; stop it first, so that no process is born that this list lacks.
        """
        if daemon.process is None:
            return []
        try:
            top = psutil.Process(daemon.pid)
            if freeze:
                top.suspend()
            found = [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            found = []
        self._seen.update({process.pid: process for process in found})
        return found

    @property
    def worker_pid(self) -> int:
        pid = self.edge.status().worker.pid
        assert pid is not None, "no worker runs"
        return pid

    # --- using ------------------------------------------------------------------------------------------------------

    def send(self, service: str = "every", brightness: float = HARD, side: int = 32) -> Decision:
        """Inspect a picture that no one has sent before."""
        self._number += 1
        return self.edge.inspect(service, picture(brightness, side, seed=self._number))

    def arrived(self) -> Counter[str]:
        """How often each sample id is among cloudd's answers, as `cloudd answers list --json` prints them."""
        return answers(self.cloud)

    def spooled(self) -> list[str]:
        """Ids of the samples that wait in the spool now; the status is up to a second old."""
        return [sample.id for sample in self.edge.client.get("/spool?limit=100000", list[SpooledSample])]

    def wait_drained(self, timeout_s: float = 90.0) -> None:
        """Until nothing waits in the spool."""
        self.edge.wait_for(lambda: not self.spooled(), "to empty its spool", timeout_s, 0.1)

    # --- the end ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Plant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.processes(self.edge, freeze=True)
            self.processes(self.cloud, freeze=True)
            self.edge.kill()
            self.cloud.kill()
            if self.link is not None:
                self.link.close()
            gone(list(self._seen.values()))
            if error is not None and isinstance(error, Exception):
                error.add_note(f"--- edged's log\n{self.edge.log_tail()}\n--- cloudd's log\n{self.cloud.log_tail()}")
        finally:
            if self._own:
                shutil.rmtree(self.place, ignore_errors=True)


def tone(number: int) -> bytes:
    """Three easy pictures of the same brightness, then a hard one of a brightness of its own."""
    return picture(EASY) if number % 4 != 3 else picture(HARD, seed=number)


def answers(cloud: Cloud) -> Counter[str]:
    """Sample id -> how often cloudd lists an answer to it."""
    done = cloud.command("answers", "list", "--json", "--limit", "100000")
    assert done.returncode == 0, done.stderr
    return Counter(one["sample_id"] for one in json.loads(done.stdout))


def gone(processes: list[psutil.Process]) -> None:
    """Fail (and end them) unless these processes end by themselves in time."""
    until = time.monotonic() + _GONE_S
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < until:
        time.sleep(0.01)
    for process in alive:
        process.kill()
    assert not alive, f"these processes outlived their daemon: {alive}"


def _runs(process: psutil.Process) -> bool:
    """A zombie does not: nobody has to have asked for its exit status yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def died(daemon: Cloud | Edge, timeout_s: float = 60.0) -> None:
    """Wait until the daemon has killed itself at its crash point, as SIGKILL does it."""
    assert daemon.process is not None
    status = daemon.process.wait(timeout_s)
    assert status == -9, f"it ended with {status} instead of at its crash point\n{daemon.log_tail()}"
    daemon.kill()  # forgets the process and its connections


def wait_for_api(edge: Edge) -> None:
    """Until the local API answers; the worker may still be loading."""

    def up() -> bool:
        try:
            edge.client.text("/version", 5.0)
        except NotRunning:
            return False
        return True

    edge.wait_for(up, "to answer its local API")


def assert_whole(edge: Edge | None = None, cloud: Cloud | None = None) -> None:
    """Nothing half-written is left on disk: no temporary file, packages and databases are sound."""
    for daemon in (edge, cloud):
        if daemon is None:
            continue
        left = [path for path in _walk(daemon.state_dir) if _LEFTOVERS.search(path.name)]
        assert not left, f"left behind: {left}"
        for path in daemon.state_dir.rglob("*.db"):
            _assert_sound(path)
        assert not list(daemon.state_dir.rglob("*.bad-*")), "a database was moved aside as damaged"
    if edge is not None:
        for path in (edge.state_dir / "models").iterdir():
            assert open_package(path).ref == path.name
    if cloud is not None:
        for path in (cloud.state_dir / "cache").glob("models/*"):
            assert open_package(path).ref == path.name
        _assert_blobs(cloud.state_dir)


def _assert_sound(path: Path) -> None:
    connection = sqlite3.connect(path, timeout=10.0)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok", path
    finally:
        connection.close()


def _assert_blobs(state: Path) -> None:
    """Every blob holds what its name says, every row's blob is there, and no blob is without a row."""
    present = set()
    for path in (state / "blobs").rglob("*"):
        if path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, f"{path} is damaged"
            present.add(path.name)
    connection = sqlite3.connect(state / "cloudd.db", timeout=10.0)
    named = connection.execute(
        "SELECT sha256 FROM model_files UNION SELECT picture FROM answers WHERE picture IS NOT NULL "
        "UNION SELECT thumbnail FROM answers WHERE thumbnail IS NOT NULL"
    )
    wanted = {row[0] for row in named}
    connection.close()
    assert present == wanted, f"missing {wanted - present}, without a row {present - wanted}"


def _walk(root: Path) -> Iterator[Path]:
    return root.rglob("*")


def _copy(source: Path, target: Path) -> None:
    """A stopped daemon's folder, without its sockets."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.sock"), dirs_exist_ok=True)


def raw_exchange(address: str, data: bytes, *, hang_up: bool = False, timeout_s: float = 10.0) -> bytes:
    """Send these bytes to host:port on a connection of their own; everything that comes back until the server closes.

    `hang_up`: say at once that nothing more will come. Raises TimeoutError if the server keeps the connection open.
    """
    host, _, port = address.rpartition(":")
    reply = bytearray()
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        try:
            connection.sendall(data)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65_536):
                reply += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass  # it closed while we still had something to say
    return bytes(reply)
