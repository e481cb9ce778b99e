"""Other inference servers to measure beside edged, each in an environment of its own, where there is one.

    python3 -m venv DIR/mlserver
    DIR/mlserver/bin/pip install mlserver==1.7.1 onnxruntime numpy opencv-python-headless
    python3 -m venv DIR/litserve
    DIR/litserve/bin/pip install litserve onnxruntime numpy opencv-python-headless

and EDGED_PEERS=DIR, or the benchmark's --peers DIR. Both get the same models, runtime settings and picture code as the
floor. MLServer runs the models in its event loop (MLSERVER_PARALLEL_WORKERS=0): with its default of one parallel worker
it ends at once on current releases of uvloop. LitServe has one model a server, so there is one server for each, with
one worker process as is its default; --litserve-workers tells another number.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import processes, serving_requests
from benchmarks.load_generator import Address, Client, run
from benchmarks.serving_models import MODELS, Model
from benchmarks.serving_requests import How

NAMES = ("mlserver", "litserve")
START_S = 60.0
_HERE = Path(__file__).resolve().parent


class PeerError(RuntimeError):
    """A peer did not start; the message carries the end of its log."""


class Peer:
    """One running peer: an address and a process for each model, which may be the same ones."""

    def __init__(self, name: str, request: Callable[[Model, How], bytes]) -> None:
        self.name = name
        self.request = request
        self.first_answer_s = 0.0
        """From the start of its processes to an answer of each model."""
        self._addresses: dict[str, Address] = {}
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def address(self, model: str) -> Address:
        return self._addresses[model]

    def pids(self, model: str) -> list[int]:
        """The processes that serve this model."""
        return processes.tree(self._started[model].pid)

    def rss_mb(self) -> float:
        """Memory of all its processes."""
        return processes.rss_mb({pid for model in self._started for pid in self.pids(model)})

    def add(self, models: list[str], command: list[str], environ: Mapping[str, str], log: Path, port: int) -> None:
        """Start one process that serves these models on this port."""
        with log.open("ab") as output:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env={**os.environ, **environ, "PYTHONPATH": str(_HERE)},
                process_group=0,
            )
        for model in models:
            self._addresses[model], self._started[model] = ("127.0.0.1", port), started

    def wait(self, log: Path) -> None:
        """Until every model has answered. Raises PeerError."""
        began = time.monotonic()
        for name, started in self._started.items():
            request = Client(self.request(MODELS[name], "jpeg"), fresh=True, pause_s=0.02)
            while not run(self.address(name), [request], 0.1).latencies:
                if started.poll() is not None or time.monotonic() > began + START_S:
                    raise PeerError(f"{self.name} does not answer\n{log.read_text('utf-8', 'replace')[-3000:]}")
        self.first_answer_s = time.monotonic() - began

    def stop(self) -> None:
        """End all its processes."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for one in set(self._started.values()):
                try:
                    os.killpg(one.pid, number)
                    one.wait(5.0)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def installed(folder: Path | None, name: str) -> bool:
    """Is there an environment for this peer?"""
    return folder is not None and (folder / name / "bin" / "python").exists()


def start(name: str, folder: Path, models: Path, work: Path, litserve_workers: int = 1) -> Peer:
    """Start one of NAMES from its environment in `folder`, with the NAME.onnx in `models`. Raises PeerError."""
    work.mkdir(parents=True)
    log = work / "log.txt"
    binaries, environ = folder / name / "bin", {"SERVING_MODELS": str(models)}
    if name == "mlserver":
        peer = Peer(name, serving_requests.mlserver)
        port, grpc, metrics = (free_port() for _ in range(3))
        for model in MODELS:
            (work / "models" / model).mkdir(parents=True)
            settings = {"name": model, "implementation": "mlserver_model.OnnxModel"}
            (work / "models" / model / "model-settings.json").write_text(json.dumps(settings))
        environ |= {
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": str(port),
            "MLSERVER_GRPC_PORT": str(grpc),
            "MLSERVER_METRICS_PORT": str(metrics),
            "MLSERVER_METRICS_DIR": str(work / "metrics"),
            "MLSERVER_ENVIRONMENTS_DIR": str(work / "environments"),
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_DEBUG": "false",
        }
        peer.add(list(MODELS), [str(binaries / "mlserver"), "start", str(work / "models")], environ, log, port)
    else:
        peer = Peer(name, serving_requests.litserve)
        for model in MODELS:
            port = free_port()
            command = [str(binaries / "python"), str(_HERE / "litserve_server.py"), model, str(port)]
            peer.add([model], [*command, str(litserve_workers)], environ, log, port)
    try:
        peer.wait(log)
    except PeerError:
        peer.stop()
        raise
    return peer


def free_port() -> int:
    """A TCP port of loopback that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
