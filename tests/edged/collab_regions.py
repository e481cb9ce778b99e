"""Frames of regions and a cloud that answers them, for tests of the collaboration."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from edged.collab.collaboration import Collaboration
from edged.collab.region_collaborator import FrameCollaborator, RegionCollaborator
from edged.collab.regions import LocalRegions
from edgekit.messages import Decision, HardSample
from edgekit.regions.header import NOTHING, Found, MosaicAnswer, Region, RegionAnswer
from edgekit.regions.select import Candidate
from edgekit.services import HardSamples, Pipeline, Regions, Service, Tiles
from edgekit.vision.images import encode_jpeg
from tests.edged.collab_bench import CALIBRATION, EASY, until

SIDE = 64
COLUMNS, ROWS = 6, 2
WIDTH, HEIGHT = COLUMNS * SIDE, ROWS * SIDE


def frame_pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A frame in which every tile has a grey level of its own, by its position: 20 * (1 + index)."""
    tiles = 20 * (1 + np.arange(COLUMNS * ROWS, dtype=np.uint8)).reshape(ROWS, COLUMNS)
    plane = np.repeat(np.repeat(tiles, SIDE, axis=0), SIDE, axis=1)
    return np.repeat(plane[:, :, None], 3, axis=2)


FRAME = encode_jpeg(frame_pixels(), 95)


def grey_of(index: int) -> int:
    return 20 * (1 + index)


def tile(index: int, margin: float = EASY, label: str = "good") -> Candidate:
    """The local answer to one tile."""
    row, column = divmod(index, COLUMNS)
    box = (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE)
    return Candidate(box, label, 0.5 + margin / 2, margin)


def box(index: int, margin: float = EASY, label: str = "short") -> Candidate:
    """A detector's box in the middle of a tile's place."""
    row, column = divmod(index, COLUMNS)
    left, top = column * SIDE + 20.0, row * SIDE + 20.0
    return Candidate((left, top, left + 24.0, top + 24.0), label, 0.5 + margin / 2, margin)


def frame(*candidates: Candidate) -> LocalRegions:
    return LocalRegions(WIDTH, HEIGHT, list(candidates))


def hard_samples(**changes: object) -> HardSamples:
    hard = HardSamples(
        mode="risk", risk=0.3, confidence=0.6, answer_model="large", calibration=CALIBRATION, audit_share=0.0
    )
    return msgspec.structs.replace(hard, **changes)


def tiled(regions: Regions | None = None, **changes: object) -> Service:
    """A classifier whose tiles are sent."""
    tiles = Tiles(width=SIDE, height=SIDE, worst=["short", "open"])
    service = Service(
        name="solder",
        model="small",
        hard_samples=hard_samples(),
        pipeline=Pipeline(tiles=tiles),
        regions=regions or Regions(clean="good"),
    )
    return msgspec.structs.replace(service, **changes)


def detecting(regions: Regions | None = None, **changes: object) -> Service:
    """A detector, whose boxes are sent unless `regions` is None."""
    service = Service(name="solder", model="small", task="detection", hard_samples=hard_samples(), regions=regions)
    return msgspec.structs.replace(service, **changes)


def says(label: Callable[[Region], str]) -> Callable[[HardSample], MosaicAnswer | None]:
    """A cloud with a classifier that says `label` about each region."""

    def answer(header: HardSample) -> MosaicAnswer | None:
        if header.mosaic is None:
            return None
        regions = [
            RegionAnswer(index=region.index, label=label(region), score=0.99, margin=0.98)
            for region in header.mosaic.regions()
        ]
        return MosaicAnswer(task="classification", regions=regions)

    return answer


def agrees(region: Region) -> str:
    return region.label


def sees(label: Callable[[Region], str]) -> Callable[[HardSample], MosaicAnswer | None]:
    """A cloud with a detector that finds `label` where each region is, or nothing there for NOTHING."""

    def answer(header: HardSample) -> MosaicAnswer | None:
        if header.mosaic is None:
            return None
        found = [
            Found(cell=number, box=region.box, label=label(region), score=0.99, margin=0.98)
            for number, cell in enumerate(header.mosaic.cells)
            for region in cell.regions
            if label(region) != NOTHING
        ]
        return MosaicAnswer(task="detection", found=found)

    return answer


class FrameLine:
    """A production line of frames; it keeps no decisions."""

    def __init__(self, collaborator: Any, prefix: str = "s") -> None:
        assert isinstance(collaborator, RegionCollaborator | FrameCollaborator)
        self.collaborator = collaborator
        self.prefix = prefix
        self.count = 0

    async def one(self, local: LocalRegions, deadline_s: float = 2.0, picture: bytes = FRAME) -> Decision:
        self.count += 1
        return await self.collaborator.settle(
            local, picture, f"{self.prefix}{self.count}", 1_800_000_000.0, "board-7", time.monotonic() + deadline_s
        )

    async def calibrate(self, candidate: Callable[[int, float], Candidate], each: int = 10) -> None:
        """Frames of `each` regions, until the gate is certified, with a cloud that agrees with everything."""
        for _ in range(-(-CALIBRATION // each)):
            await self.one(frame(*(candidate(index, 0.9) for index in range(each))), deadline_s=5.0)
        await until(lambda: self.collaborator.status().state == "certified")


async def certified(
    hub: Collaboration, service: Service, candidate: Callable[[int, float], Candidate], each: int = 10
) -> FrameLine:
    """A line whose gate is certified and whose breaker is closed; the cloud must agree with everything."""
    line = FrameLine(await hub.add(service, "small@1"))
    await until(lambda: hub.breaker_state == "closed")
    await line.calibrate(candidate, each)
    return line
