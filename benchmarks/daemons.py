"""Real daemons for benchmarks, tests and the demo: one cloudd and some edged on loopback, each with its own state.

    with Fleet(Path(folder)) as fleet:
        cloud = fleet.start_cloud()
        edge = fleet.start_edge("line-1")
        edge.join(cloud)
        ...

Every process is started as users start it (`cloudd run`, `edged run`), listens on free ports, writes its log into its
folder and is ended by its id. Nothing waits for a fixed time: readiness is asked for over the daemons' own sockets.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from cloudd.client import AdminClient, ClientError
from edged.api import ApiError, JoinBody, JoinReply, ModelBody, Progress
from edged.client import Client, NotRunning
from edged.status.state import ServiceState, StatusState
from edgekit.messages import Decision

REPOSITORY = Path(__file__).resolve().parents[1]
READY_S = 30.0
STOP_S = 15.0
_NOT_INHERITED = {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "EDGED_STATE"}


class DaemonError(RuntimeError):
    """A daemon did not do what was asked; the message carries the end of its log."""


class _Daemon(ABC):
    """One process and its folder. `folder` should be short: a unix socket's path has at most 107 bytes."""

    module = ""

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.log_path = folder / "log.txt"
        # What a service manager told the caller is not meant for these daemons.
        own = {k: v for k, v in os.environ.items() if not k.endswith("_DIRECTORY") and k not in _NOT_INHERITED}
        self.environ = {**own, **(environ or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.state_dir.mkdir(parents=True, exist_ok=True)

    def _arguments(self) -> list[str]:
        return ["run", "--state", str(self.state_dir)]

    @abstractmethod
    def is_ready(self) -> bool:
        """Does it answer, and is everything it should run running?"""

    def start(self, *, wait: bool = True, timeout_s: float = READY_S) -> None:
        """Start the process; with `wait`, return when it is ready. Raises DaemonError if it ends or takes too long."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environ,
                cwd=REPOSITORY,
            )
        if wait:
            self.wait_for(self.is_ready, "to become ready", timeout_s)

    def wait_for(
        self, condition: Callable[[], bool], what: str, timeout_s: float = READY_S, step_s: float = 0.05
    ) -> None:
        """Poll `condition` until it holds. Raises DaemonError if the process ends or the time is over."""
        until = time.monotonic() + timeout_s
        while not condition():
            if self.process is not None and self.process.poll() is not None:
                raise DaemonError(f"{self.module} ended with status {self.process.returncode}\n{self.log_tail()}")
            if time.monotonic() > until:
                raise DaemonError(f"waited {timeout_s:.0f} s for {self.module} {what}\n{self.log_tail()}")
            time.sleep(step_s)

    def command(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line against this daemon, e.g. command("status", "--json")."""
        verb, *rest = arguments
        return subprocess.run(
            [sys.executable, "-m", self.module, verb, *rest, "--state", str(self.state_dir)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=self.environ,
            cwd=REPOSITORY,
        )

    @property
    def pid(self) -> int:
        if self.process is None:
            raise DaemonError(f"{self.module} was not started")
        return self.process.pid

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if that is not heard; returns the exit status (0 if it did not run)."""
        process, self.process = self.process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(STOP_S)

    def kill(self) -> None:
        """SIGKILL: the power cut of one process."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait(STOP_S)

    def log_tail(self, size: int = 4000) -> str:
        try:
            return self.log_path.read_bytes()[-size:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""


class Cloud(_Daemon):
    """A cloudd. Its port stays the same over restarts of this object, as a real server's would."""

    module = "cloudd.cli.main"

    def __init__(
        self,
        folder: Path,
        *,
        flags: Sequence[str] = (),
        advertise: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, environ)
        self.flags = [*flags] if advertise else [*flags, "--no-advertise"]
        self.listen = "127.0.0.1:0"

    def _arguments(self) -> list[str]:
        listen = ["--listen", self.listen, "--dashboard", "127.0.0.1:0"]
        return [*super()._arguments(), *listen, *self.flags]

    @property
    def client(self) -> AdminClient:
        return AdminClient(self.state_dir / "run" / "cloudd.sock")

    def is_ready(self) -> bool:
        try:
            self.listen = self.url.removeprefix("https://")
        except ClientError:
            return False
        return True

    def status(self) -> dict[str, Any]:
        return dict(self.client.get("/status"))

    @property
    def url(self) -> str:
        """https://host:port of the device API."""
        return str(self.status()["about"]["device_url"])

    @property
    def dashboard_url(self) -> str:
        return str(self.status()["about"]["dashboard_url"])

    def invite(self, name: str = "") -> str:
        """A one-time token."""
        return str(self.client.post("/invites", {"ttl_s": 3600.0, "name": name})["token"])

    def add_model(self, package: Path) -> None:
        self.client.post("/models", {"path": str(package.absolute())})


class Edge(_Daemon):
    """An edged. Finds no cloudd by itself unless `discover`: it joins the one it is told.

    `address` is that of inference; a fixed port lets a client wait for a daemon that is not there yet.
    """

    module = "edged.cli.main"

    def __init__(
        self,
        folder: Path,
        name: str = "edge",
        *,
        config: str = "",
        discover: bool = False,
        address: str = "127.0.0.1:0",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, environ)
        self.name = name
        self._http: http.client.HTTPConnection | None = None
        self._inference = ""
        text = f'name = "{name}"\n[inference]\naddress = "{address}"\n[page]\naddress = "127.0.0.1:0"\n'
        text += f"[cloud]\ndiscover = {'true' if discover else 'false'}\n{config}"
        (self.state_dir / "edged.toml").write_text(text, encoding="utf-8")

    def _arguments(self) -> list[str]:
        # What is measured here is the daemon, not how long it takes to know its hardware.
        return [*super()._arguments(), "--config", str(self.state_dir / "edged.toml"), "--no-adapt"]

    @property
    def client(self) -> Client:
        return Client(self.state_dir / "run" / "edged.sock")

    def is_ready(self) -> bool:
        try:
            status = self.status()
        except (NotRunning, ApiError):
            return False
        return bool(status.addresses.inference) and status.worker.state == "ready"

    def stop(self) -> int:
        self._hang_up()
        return super().stop()

    def kill(self) -> None:
        self._hang_up()
        super().kill()

    def status(self) -> StatusState:
        return self.client.get("/status", StatusState)

    def service(self, name: str) -> ServiceState:
        """Raises DaemonError if it has no such service."""
        found = [one for one in self.status().services if one.name == name]
        if not found:
            raise DaemonError(f"{self.name} has no service {name}\n{self.log_tail()}")
        return found[0]

    def join(self, cloud: Cloud, url: str = "", timeout_s: float = READY_S) -> JoinReply:
        """Join (through `url` if it is given, e.g. a relay) and wait until the heartbeat arrives."""
        body = JoinBody(token=cloud.invite(self.name), url=url or cloud.url, name=self.name)
        reply = self.client.post("/join", JoinReply, body)
        self.wait_for_link(True, timeout_s)
        return reply

    def wait_for_link(self, up: bool, timeout_s: float = READY_S) -> None:
        self.wait_for(lambda: self.status().cloud.up is up, f"to see the link {'up' if up else 'down'}", timeout_s)

    def add_model(self, package: Path | None = None, *, ref: str = "") -> str:
        """Install a package from a directory or from cloudd; returns name@version."""
        body = ModelBody(path=str(package.absolute()) if package else "", ref=ref)
        last = deque(self.client.stream("/models", Progress, body), maxlen=1).pop()
        if last.error or not last.ref:
            raise DaemonError(f"{self.name} did not install {package or ref}: {last.error}\n{self.log_tail()}")
        return last.ref

    def add_service(self, text: str, timeout_s: float = READY_S) -> None:
        """Add or change a service (TOML) and wait until it is ready."""
        name = str(msgspec.toml.decode(text.encode())["name"])
        self.client.post("/services", ServiceState, text)
        self.wait_for(lambda: self._service_ready(name), f"to run service {name}", timeout_s)

    def _service_ready(self, name: str) -> bool:
        status = self.status()
        service = next((one for one in status.services if one.name == name), None)
        if service is None or status.worker.state != "ready" or status.worker.swapping:
            return False
        if service.report.state == "failed" or service.refused:
            raise DaemonError(f"service {name} failed: {service.refused or service.report.detail}\n{self.log_tail()}")
        return service.report.state == "ready"

    def inspect(self, service: str, picture: bytes, headers: Mapping[str, str] | None = None) -> Decision:
        """Post one picture (PNG or JPEG) over a kept-open connection. Raises DaemonError unless the status is 200."""
        kind = "image/png" if picture[:1] == b"\x89" else "image/jpeg"
        status, body = self.request(
            "POST", f"/v1/services/{service}/inspect", picture, {"Content-Type": kind, **(headers or {})}
        )
        if status != 200:
            raise DaemonError(f"inspect answered {status}: {body[:500].decode('utf-8', 'replace')}")
        return msgspec.json.decode(body, type=Decision)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request to the inference address; a connection that an old worker closed is opened again."""
        for last_try in (False, True):
            if self._http is None:
                self._inference = self._inference or self.status().addresses.inference
                host, _, port = self._inference.rpartition(":")
                self._http = http.client.HTTPConnection(host, int(port), timeout=60)
            try:
                self._http.request(method, path, body, dict(headers or {}))
                reply = self._http.getresponse()
                return reply.status, reply.read()
            except (http.client.HTTPException, OSError):
                self._http.close()
                self._http = None
                if last_try:
                    raise
        raise AssertionError("unreachable")

    def _hang_up(self) -> None:
        self._inference = ""
        if self._http is not None:
            self._http.close()
            self._http = None


class Fleet:
    """One cloudd and some edged under one folder; leaving the block stops them all, devices first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cloud: Cloud | None = None
        self.edges: list[Edge] = []

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_cloud(self, **options: Any) -> Cloud:
        """Start a cloudd; options as of `Cloud`."""
        self.cloud = Cloud(self.folder / "cloud", **options)
        self.cloud.start()
        return self.cloud

    def start_edge(self, name: str, **options: Any) -> Edge:
        """Start an edged named `name`; options as of `Edge`."""
        edge = Edge(self.folder / name, name, **options)
        self.edges.append(edge)
        edge.start()
        return edge

    def stop(self) -> None:
        for edge in self.edges:
            edge.stop()
        if self.cloud is not None:
            self.cloud.stop()
