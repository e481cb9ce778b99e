"""Both whole daemons, as people use them: devices learn a detector together, and a classifier of tiles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.daemons import Cloud, Edge
from cloudd.federation.views import JobDetail
from edged.federation.bodies import FederationState
from edged.federation.notes import JobNote
from edgekit import packages
from edgekit.architectures import Spec, build, detection_spec, input_spec
from edgekit.identity import IdentityStore
from edgekit.packages import Manifest, Package, Variant
from edgekit.training import MODEL_FILE, write_model
from edgekit.vision.images import encode_png
from tests.support.edged import wait_for
from tests.support.federation import Plant, definition

EDGES = 3
BOARDS = 24
TILE = 32
CONFIG = '[federation]\nenabled = true\nmin_cohort = 3\nmin_samples = 10\n[federation.plants]\nnorth = "{key}"\n'
BEHIND = (
    'may_leave = "nothing"\n[samples]\nkeep = "all"\n'
    "[learning.judging]\nitems = 2\ndrop = 0.99\nclass_drop = 0.99\nslower = 10.0\nlarger = 10.0\n"
)
DETECTS = f'name = "boards"\ntask = "detection"\nmodel = "finder@1"\n{BEHIND}'
TILES = (
    f'name = "panels"\nmodel = "cells@1"\n{BEHIND}'
    f'[pipeline.tiles]\nwidth = {TILE}\nheight = {TILE}\nworst = ["bad", "good"]\n'
)
LOCAL = '[local]\noptimiser = "adamw"\nlearning_rate = 0.006\nbatch = 4\nepochs = {epochs}\nbatch_norm = "train"\n'
PLAN = '[plan.strategy]\nstrategy = "fedavg"\nclip = 1000.0\n'


class Floor:
    """One cloudd and devices of one plant that have joined it, each with labelled pictures of both services."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plant = folder, Plant(0)
        self.cloud = Cloud(folder / "cloud")
        self.edges = [
            Edge(folder / f"edge-{at}", f"line-{at}", config=CONFIG.format(key=self.plant.public))
            for at in range(EDGES)
        ]

    def open(self) -> None:
        self.cloud.start()
        for edge in self.edges:
            edge.start()
            edge.join(self.cloud)
        self.plant.devices = [IdentityStore(edge.state_dir / "identity").key for edge in self.edges]
        self.plant.roster(self.folder / "north.roster")

    def close(self) -> None:
        for one in (*self.edges, self.cloud):
            one.stop()

    def serve(self, package: Package, service: str, name: str, labels: Sequence[str], size: tuple[int, int]) -> None:
        """The service on every device, with pictures of its own, which `edged samples import` brings."""
        self.cloud.add_model(package.root)
        for at, edge in enumerate(self.edges):
            edge.add_model(package.root)
            edge.add_service(service)
            path = dataset(self.folder / f"{name}-{at}", range(100 * at, 100 * at + BOARDS), labels, size)
            done = edge.command("samples", "import", str(path), "--service", name)
            assert done.returncode == 0, done.stderr
            assert f"{BOARDS}" in done.stdout

    def learn(self, name: str, model: str, service: str, epochs: int) -> tuple[JobDetail, list[JobNote]]:
        """`cloudd fl start`, then wait until every device has judged what came of it."""
        text = definition(
            self.plant, name=name, model=model, service=service, rounds=2, evaluate_every=1, least=EDGES, most=EDGES
        )
        path = self.folder / f"{name}.toml"
        text = text.replace('rosters = ["x"]', 'rosters = ["north.roster"]').partition("[plan.strategy]")[0]
        path.write_text(text + LOCAL.format(epochs=epochs) + PLAN)
        done = self.cloud.command("fl", "start", str(path))
        assert done.returncode == 0, done.stderr
        return wait_for(lambda: self._detail(name), 80.0, 0.3), [self._note(edge, service) for edge in self.edges]

    def _detail(self, name: str) -> JobDetail | None:
        found = msgspec.json.decode(json.dumps(self.cloud.client.get(f"/federation/jobs/{name}")), type=JobDetail)
        assert found.job.status not in ("failed", "stopped"), found.job
        return found if found.job.status == "finished" else None

    def _note(self, edge: Edge, service: str) -> JobNote:
        def judged() -> JobNote | None:
            jobs = [one.note for one in edge.client.get("/federation", FederationState).jobs]
            return next((one for one in jobs if one.service == service and one.stage in ("done", "failed")), None)

        try:
            return wait_for(judged, 80.0, 0.3)
        except AssertionError:
            raise AssertionError(f"{edge.client.get('/federation', FederationState)}\n{edge.log_tail()}") from None


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Floor]:
    found = Floor(tmp_path_factory.mktemp("fl"))
    try:
        found.open()
        yield found
    finally:
        found.close()


def dataset(folder: Path, numbers: range, labels: Sequence[str], size: tuple[int, int]) -> Path:
    """A COCO file of boards: one spot for each label in turn, dark for the first, bright for the second."""
    folder.mkdir()
    images: list[dict[str, object]] = []
    boxes: list[dict[str, object]] = []
    for number in numbers:
        kind = number % (len(labels) + 1)
        picture, box = board(number, kind if kind < len(labels) else None, size)
        (folder / f"{number}.png").write_bytes(encode_png(picture))
        images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
        if box is not None:
            area = box[2] * box[3]
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": kind, "bbox": box, "area": area})
    listed = [{"id": at, "name": label} for at, label in enumerate(labels)]
    path = folder / "boards.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": listed}))
    return path


def board(number: int, kind: int | None, size: tuple[int, int]) -> tuple[NDArray[np.uint8], list[float] | None]:
    """Noise with one spot of 12 by 12 pixels within a tile (None: without), and its box."""
    rng = np.random.default_rng(number)
    image = rng.normal(110, 8, (size[1], size[0]))
    box = None
    if kind is not None:
        left, top = (int(rng.integers(0, side // TILE)) * TILE + int(rng.integers(2, TILE - 14)) for side in size)
        image[top : top + 12, left : left + 12] += (-80, 80)[kind]
        box = [float(left), float(top), 12.0, 12.0]
    return np.asarray(np.clip(image, 0, 255), np.uint8), box


def model(folder: Path, name: str, labels: Sequence[str], *, detects: bool) -> Package:
    """One that knows nothing yet."""
    side = 64 if detects else TILE
    spec = Spec(
        architecture="centre_point" if detects else "tiny_cnn",
        classes=len(labels),
        input_width=side,
        input_height=side,
        channels=1,
        width=0.25,
        seed=1,
    )
    folder.mkdir()
    write_model(build(spec).model, folder)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    manifest = Manifest(
        name=name,
        version="1",
        task="detection" if detects else "classification",
        labels="labels.txt",
        input=input_spec(spec),
        detection=detection_spec() if detects else None,
        variants=[Variant(file=MODEL_FILE)],
    )
    return packages.seal_package(folder, manifest)


def check(floor: Floor, name: str, merged: str, found: JobDetail, notes: list[JobNote]) -> None:
    """What came of a job, and what its people read about it on both sides."""
    assert found.job.result == merged
    assert [(one.kind, one.outcome) for one in found.rounds] == [("evaluate", "summed"), ("learn", "summed")] * 2
    assert [(one.stage, one.version, one.contributed) for one in notes] == [("done", 2, 2)] * EDGES, notes
    shown = floor.cloud.command("fl", "status", name).stdout
    assert f"merged model: {merged}" in shown and shown.count("summed, accuracy ") == 2, shown
    told = floor.cloud.command("fl", "log", name).stdout
    assert "started on" in told and f"finished, {merged}" in told, told
    done = floor.edges[0].command("fl", "status")
    assert done.returncode == 0 and found.job.id[:12] in done.stdout and "2/2" in done.stdout, done
    assert merged.partition("@")[0] in {one["name"] for one in floor.cloud.client.get("/models")}


def test_a_detector_is_learned_together_from_imported_boxes(floor: Floor) -> None:
    package = model(floor.folder / "finder", "finder", ("hole", "spot"), detects=True)
    floor.serve(package, DETECTS, "boards", ("hole", "spot"), (64, 64))
    found, notes = floor.learn("boards-1", "finder@1", "boards", 16)
    check(floor, "boards-1", "finder@1-boards-1", found, notes)
    newest = next(one.figures for one in found.rounds if one.figures is not None)
    assert set(newest.f1) == {"hole", "spot"} and newest.devices == EDGES
    assert newest.accuracy > 0.3, newest


def test_a_classifier_of_tiles_is_learned_together_tile_by_tile(floor: Floor) -> None:
    package = model(floor.folder / "cells", "cells", ("good", "bad"), detects=False)
    floor.serve(package, TILES, "panels", ("bad",), (3 * TILE, 2 * TILE))
    found, notes = floor.learn("panels-1", "cells@1", "panels", 6)
    check(floor, "panels-1", "cells@1-panels-1", found, notes)
    newest = next(one.figures for one in found.rounds if one.figures is not None)
    assert newest.samples > EDGES * BOARDS * 0.3, "tiles judge, of which a picture has several"
    assert newest.accuracy > 0.9, newest
    assert all("is on trial" in one.text for one in notes), notes
