"""What a retrained package says about where it comes from. It holds no time and no place, and no picture."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgekit.architectures import Spec

RECORD = "retrained.json"
"""Beside the weights, and so beside those of the candidate that the device makes of them."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of a network on the pictures that choose; the device judges by others."""

    loss: float | None = None  # of a classifier: cross entropy
    balanced_accuracy: float | None = None  # of a classifier: mean recall over the classes that have pictures there
    ap50: float | None = None  # of a detector: average precision at an IoU of 0.5
    ap: float | None = None  # of a detector: COCO's mean of it over IoUs from 0.5 to 0.95

    @property
    def quality(self) -> float:
        """What two networks are compared by, 0 to 1."""
        return (self.balanced_accuracy if self.ap50 is None else self.ap50) or 0.0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One training."""

    epochs: int  # that were planned
    batch: int
    peak: float  # learning rate
    epoch: int  # whose weights count
    ended: str  # why
    figures: Figures


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of RECORD."""

    schema: Literal[1] = 1
    base: str  # name@version of what the device's network was made from
    base_digest: str
    network: dict[str, str]  # file -> SHA-256 of the network as the device sent it
    dataset: str  # digest of the dataset version on the device
    teaching: dict[str, int]  # pictures that show each label
    choosing: dict[str, int]
    seed: int
    before: Figures  # the device's network as it came
    teacher: Spec
    teacher_macs: int  # multiply-accumulates for one picture
    network_macs: int
    taught: Run  # the larger network
    learned: Run  # the device's network
    temperature: float | None = None  # of a classifier's distillation
    tools: dict[str, str]
