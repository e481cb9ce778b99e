"""As fl_hall: a cloudd process and devices that have joined it; here with pictures of a label that the base lacks."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
from fl_hall import Edge, Hall

from cloudd.cli.main import main as cloudd
from edged.federation.sums import _CODES, _RECORD, _Kept
from edged.federation.work import places
from edged.samples.opening import open_store
from edged.samples.records import Label, LabelRecord, NewSample
from edgekit.packages import Package
from edgekit.services import Samples
from tests.support.cloud import Cloud, FakeDevice
from tests.support.edged import wait_for
from tests.support.federation import Plant, definition
from tests.support.heads import HEAD, LABELS, head_package, picture


class HeadEdge(Edge):
    """A device with 36 pictures of three labels."""

    def __init__(self, root: Path, place: int, package: Package) -> None:
        self.state = root / f"device-{place}"
        self.device = FakeDevice(self.state / "identity", f"line-{place}")
        self.package = package
        keep = Samples(keep="all")
        events: list[object] = []
        with closing(open_store(self.state, self.device.id, lambda name: keep, 0, events.append, time.time)) as store:
            for number in range(36):
                label = LABELS[number % 3]
                record = LabelRecord(label=Label(label=label), kind="operator", author="anna", at=1.0)
                new = NewSample(service="solder", source="import", captured_at=float(number), group=f"{place}-{number}")
                store.add(new, picture(place, number, label), record)

    def in_totals(self, job: str) -> np.ndarray | None:
        """What this device says it has in the totals of a job."""
        with places(self.state, self.device.id, job) as at:
            if not (at.folder.root_beside("sums") / job).is_dir():
                return None
            kept = at.folder.beside("sums", job).read(_RECORD, _Kept)
        assert kept is not None
        return kept[1][_CODES]

    def leave(self, job: str) -> None:
        """As `edged fl leave solder`."""
        with places(self.state, self.device.id, job) as at:
            at.book.leave("solder", "we go")


class HeadHall(Hall):
    """One cloudd's devices, their plant and the model that they begin with."""

    def __init__(self, root: Path, devices: int) -> None:
        self.root = root
        self.package = head_package(root / "package")
        self.edges = [HeadEdge(root, place, self.package) for place in range(devices)]
        self.plant = Plant(0)
        self.plant.devices = [one.device.store.key for one in self.edges]
        self.plants = {"north": self.plant.public}
        self.plant.roster(root / "x")

    def head(self, cloud: Cloud, name: str, secure: bool = True, **keys: object) -> str:
        """Start a job; its id."""
        text = definition(
            self.plant if secure else None, HEAD, **{"least": len(self.edges), "rounds": 1, "name": name, **keys}
        )
        path = self.root / f"{name}.toml"
        path.write_text(text)
        if "continues" in keys:
            earlier = f"/federation/jobs/{keys['continues']}"
            wait_for(lambda: cloud.admin.get(earlier)["job"]["status"] == "finished", 100.0)
        assert cloudd(["fl", "start", str(path), "--state", str(cloud.state)]) == 0
        jobs = msgspec.convert(cloud.admin.get("/federation/jobs"), list[dict[str, object]])
        return str(next(one["id"] for one in jobs if one["name"] == name))
