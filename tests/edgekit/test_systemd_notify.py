"""systemd's protocols against real sockets and descriptors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import systemd


@pytest.fixture
def manager(tmp_path: Path) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "notify"))
    receiver.settimeout(5.0)
    return receiver


def test_messages_arrive(manager: socket.socket) -> None:
    with manager:
        environ = {"NOTIFY_SOCKET": manager.getsockname()}
        assert systemd.notify("READY=1\nSTATUS=fine", environ)
        assert manager.recv(100) == b"READY=1\nSTATUS=fine"
        assert systemd.status("two\nlines\tof  text", environ)
        assert manager.recv(100) == b"STATUS=two lines of text"


def test_an_abstract_socket(tmp_path: Path) -> None:
    name = f"edgekit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        assert systemd.notify("WATCHDOG=1", {"NOTIFY_SOCKET": "@" + name})
        assert receiver.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_nobody_listens(address: str) -> None:
    assert not systemd.notify("READY=1", {"NOTIFY_SOCKET": address} if address else {})


def test_inherited_sockets_by_name() -> None:
    """A child that is started as systemd starts one: descriptors from 3 on and its own pid in the environment."""
    program = (
        "import os, sys\n"
        "one, two = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))\n"
        "os.dup2(one, 3), os.dup2(two, 4)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from edgekit import systemd\n"
        "print(systemd.listen_fds(), os.get_inheritable(3), 'LISTEN_FDS' in os.environ, systemd.listen_fds())\n"
    )
    with socket.socket() as one, socket.socket() as two:
        environ = {**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "device:page"}
        descriptors = (one.fileno(), two.fileno())
        command = [sys.executable, "-c", program, *map(str, descriptors)]
        output = subprocess.run(command, env=environ, pass_fds=descriptors, capture_output=True, text=True, check=True)
    assert output.stdout == "{'device': [3], 'page': [4]} False False {}\n"


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"}],
)
def test_sockets_that_are_not_ours(environ: dict[str, str]) -> None:
    assert systemd.listen_fds(environ) == {}
    assert not environ


def test_watchdog_interval() -> None:
    assert systemd.watchdog_interval_s({"WATCHDOG_USEC": "30000000"}) == 15.0
    assert systemd.watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15.0
    assert systemd.watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    assert systemd.watchdog_interval_s({"WATCHDOG_USEC": "soon"}) is None
    assert systemd.watchdog_interval_s({}) is None
