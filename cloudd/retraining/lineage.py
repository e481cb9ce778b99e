"""What a retrained package says about where it comes from. It holds no time and no place, and no picture."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgekit.architectures import Spec

RECORD = "retrained.json"
"""Beside the weights, and so beside those of the candidate that the device makes of them."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of a network on the pictures that choose; the device judges by others."""

    loss: float  # cross entropy
    balanced_accuracy: float  # mean recall over the classes that have pictures there


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
    teaching: dict[str, int]  # pictures of each label
    choosing: dict[str, int]
    seed: int
    before: Figures  # the device's network as it came
    teacher: Spec
    teacher_macs: int  # multiply-accumulates for one picture
    network_macs: int
    taught: Run  # the larger network
    learned: Run  # the device's network
    temperature: float  # of the distillation
    tools: dict[str, str]
