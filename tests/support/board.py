"""A device with a scripted accelerator: a board that can be heated and unplugged, its profile, and a model for it.

The real supervisor, worker and bench children run on it. Only two things are made up: the machine's files, and that the
accelerator's driver is the scripted one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from edged import inventory, sockets
from edged.config import Address, Settings
from edged.device import Device
from edged.hardware import grid
from edged.hardware.adapt import Surroundings, Timing
from edged.hardware.gate import Accepted
from edged.hardware.grid import Cpus, Interpreters
from edged.hardware.host import Missing, Node, TreeHost
from edged.hardware.settings import Choice, Measurement, Setting
from edged.hardware.store import ChoiceStore, Need
from edged.status.state import Addresses
from edged.subjects import Outside
from edgekit.packages import Package, Variant, seal_package
from edgekit.runtimes.fake_driver import Script
from support.models import make_package, picture

NODE = "/dev/testnpu0"
CANDIDATE = "accel/test#npu"
PROFILE = """
schema = 1
id = "accel/test"
version = 1
layer = "accel"
name = "Test NPU"
sources = ["tests"]

[[match]]
compatible = ["test,board"]

[thermal]
zones = { npu = ["npu-thermal"] }
soft_c = 80
hard_c = 95

[[candidate]]
id = "npu"
runtime = "rknnlite"
provider = "npu"
artefact = { format = "rknn", targets = ["test-npu"] }
precision = ["int8"]
prior = 90
requires.any_node = ["/dev/testnpu*"]
requires.group = ["render"]
probe_timeout_s = 5
"""


class Board:
    """A Host whose accelerator can be pulled out and whose temperature can be set."""

    def __init__(self) -> None:
        self.plugged = True
        self.celsius = 45.0
        self._tree: tuple[tuple[bool, float], TreeHost] | None = None

    def read(self, path: str, limit: int = 65_536) -> bytes | Missing:
        return self._now().read(path, limit)

    def glob(self, pattern: str) -> list[str]:
        return self._now().glob(pattern)

    def link(self, path: str) -> str | None:
        return self._now().link(path)

    def node(self, path: str) -> Node | None:
        return self._now().node(path)

    def _now(self) -> TreeHost:
        state = (self.plugged, self.celsius)
        if self._tree is None or self._tree[0] != state:
            cpus = "".join(f"processor\t: {n}\nFeatures\t: fp asimd\nCPU part\t: 0xd03\n\n" for n in range(2))
            files = {
                "/proc/cpuinfo": cpus,
                "/sys/devices/system/cpu/online": "0-1\n",
                "/proc/meminfo": "MemTotal:        4000000 kB\n",
                "/proc/sys/kernel/osrelease": "6.12.0\n",
                "/proc/device-tree/compatible": "test,board\0",
                "/proc/device-tree/model": "Test board\0",
                "/sys/class/thermal/thermal_zone0/type": "npu-thermal\n",
                "/sys/class/thermal/thermal_zone0/temp": f"{self.celsius * 1000:.0f}\n",
            }
            lines = [f"f\t{path}\t{json.dumps(content)}" for path, content in files.items()]
            if self.plugged:
                lines.append(f'c\t{NODE}\t"660 root:render 240:0 openable"')
            self._tree = state, TreeHost("\n".join(lines))
        return self._tree[1]


def npu_package(directory: Path, npu: Script, work: int = 16) -> Package:
    """A model for the CPU that takes some milliseconds, and beside it a script that stands for the compiled one."""
    made = make_package(directory, "brightness", kind="conv", work=work)
    (directory / "npu.json").write_bytes(msgspec.json.encode(npu))
    variants = [
        *made.manifest.variants,
        Variant(file="npu.json", runtime="rknnlite", precision="int8", target="test-npu"),
    ]
    return seal_package(directory, msgspec.structs.replace(made.manifest, variants=variants, files={}))


def use_fake_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the accelerator's settings be opened by the scripted driver, in this process' children too."""
    monkeypatch.setenv("EDGED_FAKE_RUNTIME", "1")
    real = grid.first_looks

    def scripted(accepted: list[Accepted], cpus: Cpus, others: Interpreters) -> list[tuple[Accepted, Setting]]:
        return [
            (one, msgspec.structs.replace(setting, runtime="fake", interpreter=""))
            if setting.runtime == "rknnlite"
            else (one, setting)
            for one, setting in real(accepted, cpus, others)
        ]

    monkeypatch.setattr(grid, "first_looks", scripted)


class Station:
    """A Device of this process with all its children, and a client."""

    def __init__(self, directory: Path, board: Board, mode: str = "background", **outside: Any) -> None:
        profiles = directory / "profiles"
        profiles.mkdir(parents=True, exist_ok=True)
        (profiles / "test.toml").write_text(PROFILE)
        self.state = directory / "state"
        (self.state / "run").mkdir(parents=True, exist_ok=True)
        self.listener: socket.socket = sockets.listen_tcp(Address("127.0.0.1", 0))
        settings = Settings(
            state_dir=self.state, runtime_dir=self.state / "run", config_path=directory / "none.toml", name="test",
            threads=0, inference=sockets.address_of(self.listener), page=sockets.address_of(self.listener),
            page_hosts=[], cloud_url="", name_is_given=False, discover=False, allow_paths=[], allow_hosts=[],
            spool_quota=10 << 20, spool_reserve=1 << 20,
            adapt="background" if mode == "background" else "never",
        )  # fmt: skip
        fast: dict[str, Any] = {
            "tick_s": 0.2, "facts_s": 0.5, "retry_s": 0.5, "budget_s": 6.0,
            "timing": Timing(warm_s=0.2, look_s=0.08, window_s=0.05, rounds=3),
        }  # fmt: skip
        roads = {("onnxruntime", "cpu"), ("rknnlite", "npu")}
        self.outside = made = Outside(host=board, profiles=[profiles], roads=lambda: roads, **(fast | outside))
        self.device = Device(settings, self.listener, Addresses(), made)

    @property
    def url(self) -> str:
        return f"http://{sockets.address_of(self.listener)}/v1/services/solder/inspect"

    def model(self) -> Any:
        """The one model's hardware state."""
        (found,) = self.device.status().hardware.models
        return found

    def running(self) -> str:
        """Candidate of the worker's setting, "safe" without one."""
        worker = self.device._runner.worker
        assert worker is not None
        return next((one.candidate for one in worker.settings.values()), "safe")

    def codes(self) -> set[str]:
        return {item.code for item in self.device.status().health.items}

    async def inspect(self) -> int:
        """Status of one inspection; 0 if the connection broke."""
        async with aiohttp.ClientSession() as session:
            try:
                async with session.post(self.url, data=picture(0.1), headers={"Content-Type": "image/png"}) as reply:
                    return reply.status
            except aiohttp.ClientError:
                return 0

    async def until(self, what: Callable[[], object], timeout_s: float = 30.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not what():
                await asyncio.sleep(0.05)

    async def ready(self) -> None:
        """The service answers."""
        await self.until(lambda: [one.report.state for one in self.device.services()] == ["ready"])


@contextlib.asynccontextmanager
async def at_work(station: Station, package: Path | None = None) -> AsyncIterator[Station]:
    """Started; with `package` the model is installed and the service added."""
    device = station.device
    device.open()
    await device.start()
    try:
        if package is not None:
            await device.add_model(str(package))
            await device.add_service('name = "solder"\nmodel = "brightness"\ndeadline_ms = 5000\n', 60)
        await station.ready()
        yield station
    finally:
        await device.stop()
        station.listener.close()


NPU = Setting(
    candidate=CANDIDATE, variant="npu.json", runtime="fake", provider="npu", threads=1, workers=1, precision="int8"
)
CPU = Setting(candidate="floor#onnxruntime", variant="model.onnx", threads=2, workers=1)


def measured(setting: Setting, milliseconds: float, cpu_ms: float | None = None) -> Measurement:
    """A measurement of one setting."""
    return Measurement(
        setting=setting,
        p50_ms=milliseconds,
        p95_ms=milliseconds * 1.2,
        throughput=1000 / milliseconds,
        cpu_ms=milliseconds if cpu_ms is None else cpu_ms,
        cpu_share=1.0,
        rss_mb=100.0,
        n=100,
    )


def remember_choice(station: Station, board: Board, package: Package) -> None:
    """Store that the accelerator was chosen, as an earlier run of the daemon would have."""
    outside = station.outside
    known = inventory.take(board, outside.profiles)
    path = station.state / inventory.STORE
    path.parent.mkdir(exist_ok=True)
    store = ChoiceStore(path)
    around = Surroundings(facts=known.facts, profiles=known.profiles, host=board, store=store, roads=outside.roads)
    need = Need(objective="latency")
    key = inventory.examine(package.root, need, around, known.matched).key
    choice = Choice(
        setting=NPU,
        objective="latency",
        reasons=["it was the quickest"],
        alternatives=[CPU],
        measurements=[measured(NPU, 0.3), measured(CPU, 9.0)],
        at=1.0,
    )
    store.put(key, need, choice)
