"""The process as systemd sees it: readiness, watchdog, handed-down sockets, a good end and a bad one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cloudd.client import AdminClient
from tests.support.cloud import Cloud

START = [sys.executable, "-m", "cloudd.cli.main", "run", "--no-advertise", "--json"]
PORTS = ["--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0"]


def test_ready_watchdog_stopping(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30.0)
        environ = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        command = [*START, *PORTS, "--state", str(tmp_path / "state")]
        with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            heard = [manager.recv(1000).decode() for _ in range(4)]
            process.send_signal(signal.SIGTERM)
            while heard[-1] != "STOPPING=1":
                heard.append(manager.recv(1000).decode())
            assert process.wait(20) == 0
    ready = next(text for text in heard if text.startswith("READY=1"))
    assert "STATUS=device API https://127.0.0.1:" in ready
    assert heard.count("WATCHDOG=1") >= 2


def test_sockets_are_taken_over_by_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as page, socket.create_server(("127.0.0.1", 0)) as device:
        launcher = (
            "import os, sys\n"
            "page, device = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))\n"
            "os.dup2(page, 3), os.dup2(device, 4), os.set_inheritable(3, True), os.set_inheritable(4, True)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='dashboard:device')\n"
            "os.execv(sys.argv[3], sys.argv[3:])\n"
        )
        descriptors = (page.fileno(), device.fileno())
        command = [sys.executable, "-c", launcher, *map(str, descriptors), *START, "--state", str(tmp_path)]
        with subprocess.Popen(
            command, pass_fds=descriptors, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            about = json.loads(process.stdout.readline())
            assert about["device_url"].endswith(f":{device.getsockname()[1]}")
            with urllib.request.urlopen(f"http://127.0.0.1:{page.getsockname()[1]}/state.json", timeout=20) as reply:
                assert json.load(reply)["name"] == about["name"]
            process.terminate()
            assert process.wait(20) == 0


def test_after_kill_minus_nine_it_starts_again_on_the_same_state(tmp_path: Path) -> None:
    with Cloud(tmp_path) as first:
        token = first.invite()
        first.kill()
    assert (tmp_path / "run" / "cloudd.sock").exists()  # stale
    with Cloud(tmp_path) as second:
        assert second.about["fingerprint"] == token.fingerprint
        assert AdminClient(tmp_path / "run" / "cloudd.sock").get("/status")["about"]["pid"] == second.about["pid"]
        assert second.stop() == 0
    assert "Traceback" not in second.log.read_text()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        command = [*START, "--state", str(tmp_path), "--listen", address, "--dashboard", "127.0.0.1:0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"cannot listen on {address}" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", ["root-key.pem", "root.pem"])
def test_a_damaged_authority_is_not_replaced(tmp_path: Path, damage: str) -> None:
    with Cloud(tmp_path) as running:
        assert running.stop() == 0
    (tmp_path / "authority" / damage).write_text("damaged")
    done = subprocess.run(
        [*START, *PORTS, "--state", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (tmp_path / "authority" / damage).read_text() == "damaged"


def test_the_daemon_imports_no_runtime() -> None:
    """Models are loaded, trained and taken apart in children: 50 MB that the always-on process does without."""
    script = "import cloudd.daemon, sys\nprint(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "cloudd.federation.service" in loaded, "the gate looks at the real thing"
    assert not set(loaded) & {"onnx", "onnxruntime", "cv2", "ai_edge_litert", "edgekit.training"}
