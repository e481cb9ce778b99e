"""A real edged process on free ports of loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from edged.api import ApiError, ModelBody, Progress
from edged.client import Client, NotRunning
from edged.status.state import ServiceState, StatusState

T = TypeVar("T")
_HIDDEN = ("STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CONFIGURATION_DIRECTORY", "NOTIFY_SOCKET", "EDGED_STATE")


def wait_for(what: Callable[[], T | None], timeout_s: float = 30.0, every_s: float = 0.05) -> T:
    """Poll until `what` returns something true; an AssertionError after the time."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = what()
        if value:
            return value
        assert time.monotonic() < deadline, f"this did not happen within {timeout_s} s: {what}"
        time.sleep(every_s)


class Edged:
    """`edged run` in its own process; restart it with a new object on the same state directory."""

    def __init__(
        self,
        state: Path,
        *flags: str,
        crash_at: str = "",
        inference: str = "127.0.0.1:0",
        environ: dict[str, str] | None = None,
        wait: bool = True,
    ) -> None:
        self.state = state
        state.parent.mkdir(parents=True, exist_ok=True)
        self.log_path = state.with_name(f"{state.name}.log")
        child = {name: value for name, value in os.environ.items() if name not in _HIDDEN}
        child |= {"EDGED_CRASH_AT": crash_at, **(environ or {})}
        command = [sys.executable, "-m", "edged", "run", "--state", str(state), "--inference", inference]
        # Measuring in the background would disturb what other tests count; those of adaptation switch it on.
        command += ["--page", "127.0.0.1:0", "--no-discover", "--no-adapt", *flags]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=child)
        self.client = Client(state / "run" / "edged.sock")
        if wait:
            self.wait_up()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_up(self, timeout_s: float = 30.0) -> None:
        """Until the local API answers."""

        def up() -> bool:
            assert self.process.poll() is None, f"edged ended with {self.process.returncode}:\n{self.log}"
            try:
                self.client.text("/version", 5.0)
            except (NotRunning, ApiError):
                return False
            return True

        wait_for(up, timeout_s)

    def status(self) -> StatusState:
        return self.client.get("/status", StatusState)

    def service(self, name: str) -> ServiceState | None:
        return next((service for service in self.status().services if service.name == name), None)

    def wait_ready(self, name: str, timeout_s: float = 60.0) -> ServiceState:
        """Until the service is ready."""

        def ready() -> ServiceState | None:
            service = self.service(name)
            return service if service is not None and service.report.state == "ready" else None

        return wait_for(ready, timeout_s, 0.1)

    def add_model(self, directory: Path) -> str:
        """Install a package."""
        *_, last = self.client.stream("/models", Progress, ModelBody(path=str(directory.absolute())))
        assert not last.error, last.error
        return last.ref

    def add_service(self, text: str, timeout_s: float = 90.0) -> ServiceState:
        """Add a service and wait for it."""
        return self.client.post(f"/services?wait_s={timeout_s:g}", ServiceState, text, timeout_s + 10)

    def kill(self) -> None:
        """SIGKILL, as the power does it."""
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def wait_crash(self, timeout_s: float = 60.0) -> None:
        """Until the process has killed itself at its crash point."""
        assert self.process.wait(timeout_s) == -signal.SIGKILL, self.log

    def __enter__(self) -> Edged:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
