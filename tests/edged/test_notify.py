"""What the service manager sees: READY, STATUS, WATCHDOG, RELOADING, STOPPING, and the sockets it hands down."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.edged import Edged, wait_for

from edged import watchdog as watchdog_module
from edged.config import Address
from edged.health import Health
from edged.sockets import InUse, SocketError, adopt, listen_tcp, lock_state
from edged.watchdog import Watchdog


class Manager:
    """The receiving end of sd_notify."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.setblocking(False)
        self.lines: list[str] = []

    def heard(self, prefix: str) -> list[str]:
        while True:
            try:
                self.lines += self.socket.recv(65_536).decode().splitlines()
            except BlockingIOError:
                return [line for line in self.lines if line.startswith(prefix)]


def test_the_manager_hears_the_whole_life(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    environ = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
    with Edged(tmp_path / "state", environ=environ) as edged:
        wait_for(lambda: manager.heard("READY=1"))
        assert "inference on 127.0.0.1:" in manager.heard("STATUS=")[0]
        wait_for(lambda: len(manager.heard("WATCHDOG=1")) >= 2)
        (tmp_path / "state" / "services").mkdir(exist_ok=True)
        (tmp_path / "state" / "services" / "late.toml").write_text('name = "late"\nmodel = "none"\n')
        edged.process.send_signal(signal.SIGHUP)
        wait_for(lambda: manager.heard("RELOADING=1") and len(manager.heard("READY=1")) == 2)
        assert manager.heard("MONOTONIC_USEC=")
        wait_for(lambda: edged.service("late"))
        assert edged.stop() == 0
        assert manager.heard("STOPPING=1")
    assert not (tmp_path / "state" / "run" / "edged.sock").exists()


def test_handed_down_sockets_are_used_by_name(tmp_path: Path) -> None:
    """A parent does what systemd does: descriptors from 3 on, names and its child's pid in the environment."""
    inference, page = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    launcher = (
        "import fcntl, os, sys\n"
        "inference, page = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 50) for fd in sys.argv[1:3])\n"
        "os.dup2(inference, 3); os.dup2(page, 4)\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='inference:page')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'edged', 'run', '--no-discover', '--state', sys.argv[3]])\n"
    )
    state = tmp_path / "state"
    child = subprocess.Popen(
        [sys.executable, "-c", launcher, str(inference.fileno()), str(page.fileno()), str(state)],
        pass_fds=(inference.fileno(), page.fileno()),
    )
    try:
        wait_for((state / "run" / "edged.sock").exists)
        from edged.client import Client
        from edged.status.state import StatusState

        status = Client(state / "run" / "edged.sock").get("/status", StatusState)
        assert status.addresses.inference == f"127.0.0.1:{inference.getsockname()[1]}"
        assert status.addresses.page == f"127.0.0.1:{page.getsockname()[1]}"
    finally:
        child.terminate()
        assert child.wait(30) == 0
    with socket.create_connection(inference.getsockname(), 2):
        pass  # our copy still listens: a restart of the daemon refuses nobody


def test_a_handed_down_socket_must_listen() -> None:
    unbound = socket.socket()
    with pytest.raises(SocketError, match="does not listen"):
        adopt([os.dup(unbound.fileno())])


def test_a_port_in_use_is_waited_for_and_then_named() -> None:
    holder = socket.create_server(("127.0.0.1", 0))
    address = Address("127.0.0.1", holder.getsockname()[1])
    before = time.monotonic()
    with pytest.raises(SocketError, match="another program uses this port"):
        listen_tcp(address, patience_s=0.3)
    assert time.monotonic() - before >= 0.3
    holder.close()
    listen_tcp(address, patience_s=0.3).close()


def test_one_daemon_a_state_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    descriptor = lock_state(tmp_path / "run" / "lock", 0.1)
    with pytest.raises(InUse, match=f"process {os.getpid()}.*--state"):
        lock_state(tmp_path / "run" / "lock", 0.1)
    os.close(descriptor)
    os.close(lock_state(tmp_path / "run" / "lock", 0.1))


async def test_the_watchdog_is_fed_only_while_the_storage_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = Manager(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    health = Health()
    hangs = asyncio.Event()
    writes = watchdog_module._write

    def write(path: Path) -> None:
        while hangs.is_set():
            time.sleep(0.02)
        writes(path)

    monkeypatch.setattr(watchdog_module, "_write", write)
    task = asyncio.create_task(Watchdog(tmp_path / "probe", health).run())
    await asyncio.sleep(0.6)
    assert manager.heard("WATCHDOG=1")
    hangs.set()
    await asyncio.sleep(0.4)
    fed = len(manager.heard("WATCHDOG=1"))
    await asyncio.sleep(0.6)
    assert len(manager.heard("WATCHDOG=1")) == fed
    assert [item.code for item in health.items()] == ["storage"]
    hangs.clear()
    await asyncio.sleep(0.6)
    assert len(manager.heard("WATCHDOG=1")) > fed
    assert health.items() == []
    task.cancel()


async def test_a_full_disk_is_a_health_item_and_no_reason_to_starve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watchdog_module, "_write", write)
    health = Health()
    assert await Watchdog(tmp_path / "probe", health)._storage_answers(1.0)
    assert "disk is full" in health.items()[0].text
