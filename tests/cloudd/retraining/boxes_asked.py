"""A device's request for a detector in tests: drawn boards with holes and bars, a small centre-point detector."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from retraining_bench import Asked

from edgekit.architectures import Spec, detection_spec
from edgekit.messages.retraining import TaughtBox, TaughtPicture
from edgekit.vision.detection.metrics import Truth
from edgekit.vision.images import encode_png

BOX_LABELS = ("hole", "bar")
SIDE = 64
BOX_SPEC = Spec(
    architecture="centre_point", classes=len(BOX_LABELS), input_width=SIDE, input_height=SIDE, channels=1, width=0.25
)


def board(number: int) -> tuple[NDArray[np.uint8], tuple[TaughtBox, ...]]:
    """Nothing, a hole, a bar or both, by turns."""
    rng = np.random.default_rng([7, number])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image = np.full((SIDE, SIDE), 110.0)
    boxes = []
    for label, there in enumerate((number % 4 in (1, 3), number % 4 in (2, 3))):
        if not there:
            continue
        across, down = ((5, 5), (7, 3))[label]
        x = rng.uniform(label * 32 + across + 1, label * 32 + 31 - across)
        y = rng.uniform(down + 1, SIDE - down - 1)
        if label:
            inside = (abs(columns + 0.5 - x) < across) & (abs(rows + 0.5 - y) < down)
        else:
            inside = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < across**2
        image[inside] += 90 if label else -80
        boxes.append(
            TaughtBox(label, *(round(float(side), 2) for side in (x - across, y - down, x + across, y + down)))
        )
    image += rng.normal(0, 6, image.shape)
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8), tuple(boxes)


def truth(number: int) -> Truth:
    """The boxes of a board."""
    boxes = board(number)[1]
    sides = np.array([(one.left, one.top, one.right, one.bottom) for one in boxes], np.float64).reshape(-1, 4)
    return Truth(sides, np.array([one.label for one in boxes], np.int64))


class BoxesAsked(Asked):
    """What a device with a detector asks for: boards of which the last ones choose."""

    def __init__(
        self, place: Path, spec: Spec = BOX_SPEC, boards: int = 72, choosing: int = 16, **changes: object
    ) -> None:
        super().__init__(place, spec, pictures=1)
        shown = []
        for number in range(boards):
            image, boxes = board(number)
            data = encode_png(image)
            chooses = number >= boards - choosing
            shown.append(TaughtPicture(sha256=self._add(data), size=len(data), boxes=boxes, chooses=chooses))
        changed = {
            "labels": BOX_LABELS,
            "logits": "",
            "detection": detection_spec(),
            "pictures": tuple(shown),
            "base": "boards@1",
            "name": "boards.solder",
            **changes,
        }
        self._ask(msgspec.structs.replace(self.request, **changed))
        wanted = self.request.files
        self.files = {sha256: data for sha256, data in self.files.items() if sha256 in wanted}
