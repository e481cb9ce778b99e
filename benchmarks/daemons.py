"""Starts real daemons on loopback, as a user would, and ends them again: for benchmarks, tests and the demo.

Each daemon gets a state directory and a configuration file with free ports; what it prints goes to `log.txt` there.
Everything else happens through the daemons' own command lines. Only processes started here are ever ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


class DaemonError(RuntimeError):
    """A daemon did not start, or a command failed; the text carries what it said."""


class Daemon:
    """One running daemon: its process, its state directory and its command line."""

    module = ""
    verb: tuple[str, ...] = ("run",)

    def __init__(self, state: Path, config: str, environ: Mapping[str, str] | None = None) -> None:
        """Prepare `state` with a configuration file of this content; nothing runs yet."""
        self.state = state
        self.environ = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", **(environ or {})}
        for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CONFIGURATION_DIRECTORY", "NOTIFY_SOCKET", "EDGED_STATE"):
            if name not in (environ or {}):
                self.environ.pop(name, None)
        self.process: subprocess.Popen[bytes] | None = None
        state.mkdir(parents=True, exist_ok=True)
        (state / f"{self.name}.toml").write_text(config)

    @property
    def name(self) -> str:
        """The program's name."""
        return self.module.partition(".")[0]

    @property
    def log(self) -> Path:
        """Where the daemon's own lines go."""
        return self.state / "log.txt"

    def start(self, timeout: float = 30.0, extra_environ: Mapping[str, str] | None = None) -> None:
        """Start it and wait until its command line answers. Raises DaemonError with the end of its log."""
        command = [sys.executable, "-m", self.module, *self.verb, "--state", str(self.state)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY, env={**self.environ, **(extra_environ or {})}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self.process.poll() is not None:
                raise DaemonError(f"{self.name} ended with status {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                self.stop()
                raise DaemonError(f"{self.name} was not ready within {timeout:.0f} s:\n{self.tail()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            self.status()
        except DaemonError:
            return False
        return True

    def run(self, *arguments: str, timeout: float = 60.0, check: bool = True) -> str:
        """Run one command of this daemon's command line and return what it prints. Raises DaemonError."""
        command = [sys.executable, "-m", self.module, *arguments, "--state", str(self.state)]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.environ, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode != 0:
            raise DaemonError(f"{self.name} {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def status(self) -> dict[str, Any]:
        """`status --json`. Raises DaemonError."""
        try:
            state: dict[str, Any] = json.loads(self.run("status", "--json"))
        except json.JSONDecodeError as error:
            raise DaemonError(f"{self.name} status --json did not print JSON: {error}") from error
        return state

    def tail(self, lines: int = 15) -> str:
        """The end of the daemon's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM and wait; SIGKILL if that takes too long. Returns the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.process = None
        return status


class Cloud(Daemon):
    """A cloudd on free loopback ports that does not advertise itself."""

    module = "cloudd.cli.main"

    def __init__(
        self, state: Path, *, name: str = "cloud", extra: str = "", environ: Mapping[str, str] | None = None
    ) -> None:
        config = f'name = "{name}"\nlisten = "127.0.0.1:0"\ndashboard = "127.0.0.1:0"\nadvertise = false\n{extra}'
        super().__init__(state, config, environ)

    def invite(self) -> str:
        """A fresh join token."""
        return str(json.loads(self.run("invite", "--json"))["token"])


class Edge(Daemon):
    """An edged on free loopback ports that looks for no cloud by itself."""

    module = "edged.cli.main"

    def __init__(
        self,
        state: Path,
        *,
        name: str = "edge",
        threads: int = 1,
        extra: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        config = (
            f'name = "{name}"\nthreads = {threads}\n[inference]\naddress = "127.0.0.1:0"\n'
            f'[page]\naddress = "127.0.0.1:0"\n[cloud]\ndiscover = false\n{extra}'
        )
        super().__init__(state, config, environ)

    def join(self, cloud: Cloud, url: str) -> None:
        """Enrol this device with `cloud`, reachable at `url`."""
        self.run("join", cloud.invite(), "--url", url)

    def serve(self, definition: str, timeout: float = 60.0) -> None:
        """Add one service and wait until it is ready. Raises DaemonError with its own reason."""
        file = self.state / "service.toml"
        file.write_text(definition)
        self.run("services", "add", str(file))
        deadline = time.monotonic() + timeout
        while True:
            services = self.status()["services"]
            reports = [service["report"] for service in services if f'name = "{service["name"]}"' in definition]
            if reports and reports[0]["state"] == "ready":
                return
            if time.monotonic() > deadline:
                raise DaemonError(f"the service is not ready after {timeout:.0f} s: {reports}\n{self.tail()}")
            time.sleep(0.2)


def stop_all(daemons: Sequence[Daemon]) -> None:
    """End them, devices first."""
    for daemon in reversed(daemons):
        daemon.stop()
