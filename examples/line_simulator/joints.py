"""Draws one solder joint as an inspection camera would see it.

A joint is a height map (pad, fillet, lead) lit by a directional lamp: Lambert shading plus a Phong highlight, which is
what makes solder look like solder. Defects change the height map or the surface, with a severity between 0 and 1; a
mild defect is close to a good joint, which is why some samples are hard for a small model.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

CLASSES = ("normal", "insufficient", "bridge", "pinhole", "cold")
SIDE = 64
"""Pixels, width and height of the picture of one joint."""

Image = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

_Y, _X = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) - (SIDE - 1) / 2


@dataclass(frozen=True)
class Look:
    """What is particular to one plant: its boards, its lamp and its camera."""

    mask_rgb: tuple[float, float, float] = (0.10, 0.34, 0.16)  # solder mask, linear 0..1
    copper_rgb: tuple[float, float, float] = (0.72, 0.45, 0.20)
    square_share: float = 0.3  # share of pads that are square
    lamp_azimuth: float = 0.8  # radians
    lamp_elevation: float = 0.95
    brightness: float = 1.0
    blur: float = 0.6  # sigma, pixels
    noise: float = 0.012  # sigma, of full scale


@dataclass(frozen=True)
class Wear:
    """How far the camera has drifted from the day it was set up; zero is a fresh line."""

    dimming: float = 0.0  # share of light lost
    blur: float = 0.0  # extra sigma, pixels
    noise: float = 0.0  # extra sigma


def _distance(square: bool, x: Plane, y: Plane) -> Plane:
    if square:
        return np.maximum(np.abs(x), np.abs(y))
    return np.hypot(x, y).astype(np.float32)


def draw_joint(kind: str, severity: float, look: Look, wear: Wear, rng: np.random.Generator) -> Image:
    """Return a SIDE x SIDE x 3 RGB picture (uint8) of a joint of `kind` (one of CLASSES), severity 0..1."""
    square = bool(rng.random() < look.square_share)
    x = _X - rng.normal(0, 1.5)
    y = _Y - rng.normal(0, 1.5)
    pad_radius = rng.uniform(17, 20)
    distance = _distance(square, x, y)
    pad = distance < pad_radius

    wetted = rng.uniform(0.90, 1.04)
    angle = np.arctan2(y, x).astype(np.float32)
    if kind == "insufficient":
        wetted -= 0.10 + 0.38 * severity
    radius = pad_radius * wetted * (1 + 0.03 * np.sin(3 * angle + rng.uniform(0, 6.28)))
    if kind == "insufficient":
        # Solder also retreats from one side, as it does when the lead was too cold there.
        radius = radius * (1 - 0.25 * severity * (np.cos(angle - rng.uniform(0, 6.28)) > 0.5))
    fillet = np.clip(1 - (distance / radius) ** 2, 0, None).astype(np.float32)
    height = 9 * fillet**0.8
    solder = fillet > 0

    if kind == "bridge":
        # A neck of solder runs to the neighbouring pad, which enters the picture from the side.
        direction = rng.choice([0.0, np.pi / 2, np.pi, -np.pi / 2])
        along = x * np.cos(direction) + y * np.sin(direction)
        across = -x * np.sin(direction) + y * np.cos(direction)
        reach = pad_radius + 4 + 16 * severity
        neck = (along > 0) & (along < reach) & (np.abs(across) < 2.0 + 5.5 * severity)
        height = np.maximum(height, np.where(neck, 2.5 + 3 * severity, 0)).astype(np.float32)
        solder = solder | neck
    if kind == "pinhole":
        hole_x, hole_y = rng.uniform(-0.55, 0.55, 2) * pad_radius
        hole = np.hypot(x - hole_x, y - hole_y)
        size = 1.3 + 3.0 * severity
        height = (height - (5 + 5 * severity) * np.exp(-((hole / size) ** 2))).astype(np.float32)
    grain = 0.10
    if kind == "cold":
        grain += 0.25 + 0.9 * severity
    rough = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), 1.1)
    height = (height + grain * rough * solder).astype(np.float32)

    lead = np.hypot(x, y) < rng.uniform(4.0, 5.5)
    height = np.where(lead, height.max() + 1.5, height).astype(np.float32)
    height = cv2.GaussianBlur(height, (0, 0), 0.9)

    dy, dx = np.gradient(height)
    length = np.sqrt(dx**2 + dy**2 + 1)
    azimuth = look.lamp_azimuth + rng.normal(0, 0.08)
    lamp = (
        np.cos(azimuth) * np.cos(look.lamp_elevation),
        np.sin(azimuth) * np.cos(look.lamp_elevation),
        np.sin(look.lamp_elevation),
    )
    facing = np.clip((-dx * lamp[0] - dy * lamp[1] + lamp[2]) / length, 0, 1)
    gloss = 0.8 if kind != "cold" else 0.8 - 0.6 * severity
    shine = gloss * np.clip(facing, 0, 1) ** 22

    mask = np.array(look.mask_rgb, np.float32)
    copper = np.array(look.copper_rgb, np.float32)
    weave = 1 + 0.05 * np.sin(_X * 1.1) * np.sin(_Y * 1.1)
    albedo = mask * weave[..., None] * np.ones((SIDE, SIDE, 3), np.float32)
    albedo = np.where(pad[..., None], copper, albedo)
    albedo = np.where(solder[..., None], np.array((0.56, 0.57, 0.60), np.float32), albedo)
    albedo = np.where(lead[..., None], np.array((0.70, 0.69, 0.66), np.float32), albedo)
    light = albedo * (0.25 + 0.75 * facing[..., None]) + shine[..., None] * (solder | lead | pad)[..., None]
    light = light * look.brightness * (1 - wear.dimming) * rng.normal(1, 0.04)
    light = cv2.GaussianBlur(light.astype(np.float32), (0, 0), max(look.blur + wear.blur, 0.05))
    light = light + rng.normal(0, look.noise + wear.noise, light.shape)
    image: Image = (np.clip(light, 0, 1) ** (1 / 1.8) * 255).astype(np.uint8)
    return image
