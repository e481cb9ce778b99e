"""A cloudd process with a registered model, and devices that have joined it with labelled pictures of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import cv2
import msgspec
import numpy as np

from cloudd.cli.main import main as cloudd
from edged.federation.notes import JobNote
from edged.federation.order import FederationOrder
from edged.federation.settings import Federation
from edged.federation.shared import Shared
from edged.federation.work import places
from edged.samples.opening import open_store
from edged.samples.records import Label, LabelRecord, NewSample
from edged.spawn import worker_environment
from edgekit.messages.federation import FederatedJob
from edgekit.packages import Package
from edgekit.services import Samples
from tests.support.cloud import Cloud, FakeDevice
from tests.support.federation import LABELS, Plant, definition, small_package

SERVICE = 'name = "solder"\nmodel = "small"\n[samples]\nkeep = "all"\n'
LOCAL = '[local]\nlearning_rate = 0.05\nbatch = 8\nepochs = 2\nbatch_norm = "train"\n'


class Edge:
    """A device that has joined, with labelled pictures of its own."""

    def __init__(self, root: Path, place: int, package: Package) -> None:
        self.state = root / f"device-{place}"
        self.device = FakeDevice(self.state / "identity", f"line-{place}")
        self.package = package
        keep = Samples(keep="all")
        events: list[object] = []
        store = open_store(self.state, self.device.id, lambda name: keep, 0, events.append, time.time)
        with closing(store):
            for number in range(24):
                label = LABELS[number % 2]
                record = LabelRecord(label=Label(label=label), kind="operator", author="anna", at=1.0)
                new = NewSample(service="solder", source="import", captured_at=float(number), group=f"{place}-{number}")
                store.add(new, picture(place, number, label), record)

    def policy(self, plants: dict[str, str]) -> Federation:
        # Repeats, because the tests begin several jobs with one model.
        return Federation(enabled=True, plain=True, min_cohort=3, plants=plants, min_samples=10, repeats=9)

    def order(self, url: str, job: str, plants: dict[str, str], **changes: object) -> FederationOrder:
        identity = self.device.store.current()
        assert identity is not None
        order = FederationOrder(
            state_dir=str(self.state),
            device_id=self.device.id,
            identity=str(identity.directory),
            url=url,
            job=job,
            service=SERVICE,
            base=str(self.package.root),
            policy=self.policy(plants),
        )
        return msgspec.structs.replace(order, **changes)

    def note(self, job: str) -> JobNote:
        with places(self.state, self.device.id, job) as at:
            found = at.book.job(job)
        assert found is not None
        return found

    def model(self, job: str) -> np.ndarray:
        with places(self.state, self.device.id, job) as at:
            told = msgspec.json.decode((at.folder.path / "job.json").read_bytes(), type=FederatedJob)
            return Shared(told, at.folder).state.model


class Hall:
    """One cloudd's devices, their plant and the model that they begin with."""

    def __init__(self, root: Path, devices: int) -> None:
        self.root = root
        self.package = small_package(root / "package")
        self.edges = [Edge(root, place, self.package) for place in range(devices)]
        self.plant = Plant(0)
        self.plant.devices = [one.device.store.key for one in self.edges]
        self.plants = {"north": self.plant.public}
        self.plant.roster(root / "x")

    async def join(self, cloud: Cloud) -> None:
        for one in self.edges:
            reply = await one.device.enroll(cloud, cloud.invite())
            assert reply.status == 200
        assert cloudd(["models", "add", str(self.package.root), "--state", str(cloud.state)]) == 0

    def begin(self, cloud: Cloud, name: str, secure: bool, rounds: int = 2) -> str:
        text = definition(self.plant if secure else None, least=len(self.edges), rounds=rounds, name=name)
        path = self.root / f"{name}.toml"
        head, plan = text.split("[plan", 1)
        path.write_text(f"{head}{LOCAL}[plan{plan}")
        assert cloudd(["fl", "start", str(path), "--state", str(cloud.state)]) == 0
        jobs = cloud.admin.get("/federation/jobs")
        listed = jobs if isinstance(jobs, list) else jobs["jobs"]
        return str(next(one["id"] for one in listed if one["name"] == name))


def picture(place: int, number: int, label: str) -> bytes:
    """A noisy square, bright where it is good; each device has its own light."""
    rng = np.random.default_rng([place, number])
    image = rng.normal(60 + 8 * place, 12, (32, 32))
    image[10:22, 10:22] += 90 if label == "good" else 20
    return bytes(cv2.imencode(".png", np.clip(image, 0, 255).astype(np.uint8))[1])


def start(order: FederationOrder, crash_at: str = "") -> subprocess.Popen[bytes]:
    """The child process of a device."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "edged.federation"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**worker_environment(), "EDGED_CRASH_AT": crash_at},
    )
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(order))
    child.stdin.close()
    child.stdin = None
    return child


def ended(child: subprocess.Popen[bytes], timeout_s: float = 90.0) -> tuple[int, bytes, str]:
    """Exit status, what it said and its log."""
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        raise AssertionError(f"it does not end:\n{err.decode()}") from None
    return child.returncode, out, err.decode()
