"""A line that produces boards: serial numbers, a defect rate, a plant's look, and slow drift of lamp and lens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from examples.line_simulator.joints import CLASSES, SIDE, Image, Look, Wear, draw_joint

COLUMNS, ROWS = 4, 3
JOINTS_PER_BOARD = COLUMNS * ROWS

PLANTS: dict[str, Look] = {
    "north": Look(),
    "south": Look(mask_rgb=(0.06, 0.14, 0.36), square_share=0.6, lamp_azimuth=2.2, brightness=0.9, blur=0.8),
    "training": Look(),
}
"""Two plants with looks of their own; a model sees both in training, each in many variations."""


@dataclass(frozen=True)
class Joint:
    """One solder joint of a board: its position, the truth about it and its picture (RGB, uint8)."""

    position: int
    label: str
    severity: float
    image: Image

    def jpeg(self, quality: int = 92) -> bytes:
        ok, data = cv2.imencode(
            ".jpg", cv2.cvtColor(self.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
        if not ok:
            raise ValueError("the picture could not be encoded as JPEG")
        return bytes(data)


@dataclass(frozen=True)
class Board:
    """One board as it leaves the line."""

    serial: str
    joints: list[Joint]

    def picture(self) -> Image:
        """The whole board as one RGB picture, joints in their grid, for people to look at."""
        rows = [
            np.concatenate([j.image for j in self.joints[r * COLUMNS : (r + 1) * COLUMNS]], axis=1) for r in range(ROWS)
        ]
        return np.concatenate(rows, axis=0)


def boards(
    plant: str,
    seed: int,
    *,
    defect_rate: float = 0.25,
    drift_per_board: float = 0.0,
    drift_from: int = 0,
    severity: tuple[float, float] = (0.15, 1.0),
) -> Iterator[Board]:
    """Yield boards for ever. The same plant and seed always give the same boards.

    `drift_per_board` ages lamp and lens from board `drift_from` on: n boards later the light has lost a share of
    min(0.5, n * drift), and blur and noise have grown accordingly. Raises KeyError for an unknown plant.
    """
    look = PLANTS[plant]
    rng = np.random.default_rng([seed, len(plant), *plant.encode()])
    number = 0
    while True:
        age = min(0.5, max(0, number - drift_from) * drift_per_board)
        wear = Wear(dimming=age, blur=2.0 * age, noise=0.03 * age)
        joints = []
        for position in range(JOINTS_PER_BOARD):
            label = str(rng.choice(CLASSES[1:])) if rng.random() < defect_rate else CLASSES[0]
            strength = float(rng.uniform(*severity))
            joints.append(Joint(position, label, strength, draw_joint(label, strength, look, wear, rng)))
        yield Board(f"{plant[0].upper()}{seed:02d}-{number:06d}", joints)
        number += 1


def varied_look(rng: np.random.Generator) -> Look:
    """A plant that never existed, for training: every parameter drawn around the real ones."""
    base = PLANTS["north"] if rng.random() < 0.5 else PLANTS["south"]
    return replace(
        base,
        mask_rgb=tuple(np.clip(np.array(base.mask_rgb) + rng.normal(0, 0.05, 3), 0.02, 0.9)),
        square_share=float(rng.uniform(0.1, 0.8)),
        lamp_azimuth=float(base.lamp_azimuth + rng.normal(0, 0.4)),
        brightness=float(rng.uniform(0.65, 1.1)),
        blur=float(rng.uniform(0.4, 1.4)),
        noise=float(rng.uniform(0.005, 0.03)),
    )


def training_set(count: int, seed: int) -> tuple[Image, np.ndarray]:
    """`count` joints: pictures (count, SIDE, SIDE, 3) uint8 RGB and class indices (count,) int64.

    Half of them are good, as good joints must not drown in rare defects nor be taken for them; every picture has been
    through JPEG, as on a real line.
    """
    rng = np.random.default_rng(seed)
    pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
    labels = np.where(rng.random(count) < 0.5, 0, rng.integers(1, len(CLASSES), count))
    for index, label in enumerate(labels):
        joint = Joint(
            0, CLASSES[label], 0.0, draw_joint(CLASSES[label], rng.uniform(0.1, 1), varied_look(rng), Wear(), rng)
        )
        decoded = cv2.imdecode(np.frombuffer(joint.jpeg(int(rng.integers(85, 97))), np.uint8), cv2.IMREAD_COLOR)
        pictures[index] = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return pictures, labels
