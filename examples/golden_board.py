"""A model package without a model: the picture of a perfect board, with boards to try it on.

    python -m examples.golden_board DIR

draws a bare board with copper traces, and writes to DIR the package `golden-board`, the service definition
`golden-board.toml` and pictures of boards: perfect ones, ones with an open trace, and ones with a short. Each lies a
little aside, turned, and in another light, as a camera over a conveyor sees it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekit.packages import (
    DetectionSpec,
    InputSpec,
    Manifest,
    Package,
    ProofSample,
    TemplateSpec,
    Variant,
    seal_package,
)
from edgekit.vision.detection.detector import Detector
from edgekit.vision.images import encode_png

WIDTH, HEIGHT = 640, 480
PITCH = 46  # pixels from trace to trace
COPPER, BOARD = 205, 45
LABELS = ("open", "short")
SERVICE = """\
# Finds open traces and shorts on a bare board, by comparison with a perfect one. Nothing was trained.
name = "golden-board"
task = "detection"
model = "golden-board"

[decision]
pass = ["nothing"]
fail = ["open", "short"]
"""

Grey = NDArray[np.uint8]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shot:
    """A picture of a board, and the defect on it."""

    image: Grey
    label: str = ""  # "": a perfect board
    box: Box = (0.0, 0.0, 0.0, 0.0)  # of the defect, in pixels of the picture


def golden() -> Grey:
    """The perfect board: traces between pads, each with a bend of its own."""
    image = np.full((HEIGHT, WIDTH), BOARD, np.uint8)
    for row, bend in _traces():
        points = np.array([(60, row), (bend, row), (bend + 26, row - 22), (WIDTH - 60, row - 22)], np.int32)
        cv2.polylines(image, [points], False, COPPER, 7)
        for pad in (points[0], points[-1]):
            cv2.circle(image, (int(pad[0]), int(pad[1])), 11, COPPER, cv2.FILLED)
    cv2.rectangle(image, (22, 22), (46, 46), COPPER, cv2.FILLED)  # the mark that tells up from down
    return image


def shot(label: str, seed: int) -> Shot:
    """A board with this defect (or none for "") as a camera sees it."""
    rng = np.random.default_rng(seed)
    image, box = golden(), (0.0, 0.0, 0.0, 0.0)
    if label:
        traces = _traces()
        number = int(rng.integers(len(traces) - 1))
        row, x = traces[number][0], int(rng.integers(90, min(traces[number][1], traces[number + 1][1]) - 40))
        if label == "open":
            box = (x, row - 4, x + 14, row + 5)
            image[row - 4 : row + 5, x : x + 14] = BOARD
        else:
            box = (x, row + 4, x + 8, row + PITCH - 3)
            image[row + 4 : row + PITCH - 3, x : x + 8] = COPPER
    angle, (right, down) = rng.uniform(-0.8, 0.8), rng.uniform(-5, 5, 2)
    warp = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), angle, 1.0)
    warp[:, 2] += (right, down)
    moved = cv2.warpAffine(image, warp, (WIDTH, HEIGHT), borderValue=BOARD).astype(np.float64)
    seen = moved * rng.uniform(0.8, 1.1) + rng.uniform(-10, 10) + rng.normal(0, 3, moved.shape)
    corners = np.array([[box[i], box[j], 1.0] for i in (0, 2) for j in (1, 3)]) @ warp.T
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return Shot(np.clip(np.rint(seen), 0, 255).astype(np.uint8), label, (left, top, right, bottom))


def make_package(target: Path) -> Package:
    """Write and seal the package in `target`, with a proof for each defect and for a perfect board."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "golden.png").write_bytes(encode_png(golden()))
    (target / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    samples = []
    for label in ("", *LABELS):
        example, file = shot(label, 7), f"{label or 'good'}.png"
        (target / file).write_bytes(encode_png(example.image))
        if label:
            box = [round(edge, 1) for edge in example.box]
            samples.append(ProofSample(file=file, label=label, box=box, min_iou=0.3))
        samples += [ProofSample(file=file, label=one, count=int(one == label)) for one in LABELS]
    package = seal_package(
        target,
        Manifest(
            name="golden-board",
            version="1",
            task="detection",
            description="a drawn bare board",
            labels="labels.txt",
            input=InputSpec(width=WIDTH, height=HEIGHT, colour="grey"),
            detection=DetectionSpec(head="template"),
            template=TemplateSpec(area=30.0),
            variants=[Variant(file="golden.png", runtime="template")],
            samples=samples,
        ),
    )
    Detector.load(package).prove()
    return package


def write(directory: Path) -> Package:
    """Everything that `python -m examples.golden_board` writes."""
    package = make_package(directory / "golden-board")
    (directory / "golden-board.toml").write_text(SERVICE)
    boards = directory / "boards"
    boards.mkdir(exist_ok=True)
    for label in ("", *LABELS):
        for number in range(3):
            (boards / f"{label or 'good'}-{number}.png").write_bytes(encode_png(shot(label, 100 + number).image))
    return package


def _traces() -> list[tuple[int, int]]:
    """Row, and column of the bend, of each trace."""
    return [(90 + PITCH * index, 250 + 61 * index % 170) for index in range(8)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.golden_board", description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(arguments).directory
    package = write(directory)
    print(f"{package.ref} is in {directory}/golden-board. On a device:")
    print(f"  edged models add {directory}/golden-board")
    print(f"  edged services add {directory}/golden-board.toml")
    print(f"  edged inspect golden-board {directory}/boards/*.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
