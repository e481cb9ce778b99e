"""Which profiles fit the facts: pure, and with a sentence for each that does.

Layers add up instead of competing: the best board, the best SoC, every accelerator, the best CPU class, then all that
the site says. Within a layer the most specific profile wins: a hit on an earlier entry of the device tree's
`compatible` beats a later one, an exact one beats a glob; then more ids, more CPU flags, and last model and DMI decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec

from edged.hardware.facts import Facts, PciDevice
from edged.hardware.profiles import Block, Layer, Profile, Thermal

_ENTRIES = 64
"""Entries of `compatible` that are looked at; real boards have two to eight."""


class Matched(msgspec.Struct, frozen=True, kw_only=True):
    """The profiles that fit, and why. All empty is a valid answer: the machine then runs its models on the CPU."""

    board: Profile | None = None
    soc: Profile | None = None
    accels: list[Profile] = []
    cpu: Profile | None = None
    overrides: list[Profile] = []
    explanations: list[str] = []

    @property
    def profiles(self) -> list[Profile]:
        """All of them, from the hardware up: SoC, accelerators, CPU, board, site."""
        single = [self.soc, *self.accels, self.cpu, self.board, *self.overrides]
        return [profile for profile in single if profile is not None]

    @property
    def refs(self) -> list[str]:
        """id@version of each, for the key of stored choices."""
        return [profile.ref for profile in self.profiles]

    def disabled_by(self, profile_id: str, candidate_id: str) -> str:
        """The id of the board or site profile that forbids this candidate, "" if none does."""
        names = (profile_id, f"{profile_id}#{candidate_id}")
        for profile in reversed(self.profiles):
            if any(name in profile.disable for name in names):
                return profile.id
        return ""

    @property
    def thermal(self) -> Thermal:
        """Zones and limits of the machine: those of the SoC or CPU, narrowed by the board, overruled by the site.

        The zones of accelerators are added under names that the machine itself does not use.
        """
        zones: dict[str, list[str]] = {}
        for profile in self.accels:
            zones |= profile.thermal.zones
        soft = hard = None
        for layer in (self.cpu, self.soc, self.board, *self.overrides):
            if layer is not None:
                zones |= layer.thermal.zones
                soft = layer.thermal.soft_c if layer.thermal.soft_c is not None else soft
                hard = layer.thermal.hard_c if layer.thermal.hard_c is not None else hard
        return Thermal(zones=zones, soft_c=soft, hard_c=hard)


class _Fit(NamedTuple):
    """How well a block fits (the larger the better), and why, for people."""

    score: tuple[int, int, int, int]  # compatible, ids, CPU flags, ties
    why: str


def match(facts: Facts, profiles: Iterable[Profile]) -> Matched:
    """The profiles for a machine. Never raises; facts that are missing match nothing."""
    fits: dict[Layer, list[tuple[Profile, _Fit]]] = {"board": [], "soc": [], "accel": [], "cpu": [], "site": []}
    for profile in profiles:
        fit = _fit(facts, profile)
        if fit is not None:
            fits[profile.layer].append((profile, fit))
    explanations: list[str] = []
    board = _best(fits["board"], explanations)
    soc = _best(fits["soc"], explanations)
    accels = sorted(fits["accel"], key=lambda pair: pair[0].id)
    explanations += [_sentence(profile, fit) for profile, fit in accels]
    cpu = _best(fits["cpu"], explanations)
    explanations += [_sentence(profile, fit) for profile, fit in fits["site"]]
    if not explanations:
        explanations.append("no profile matches this machine; models run on the CPU")
    return Matched(
        board=board,
        soc=soc,
        accels=[profile for profile, _ in accels],
        cpu=cpu,
        overrides=[profile for profile, _ in fits["site"]],
        explanations=explanations,
    )


def _best(fits: list[tuple[Profile, _Fit]], explanations: list[str]) -> Profile | None:
    if not fits:
        return None
    ranked = sorted(fits, key=lambda pair: (tuple(-part for part in pair[1].score), pair[0].id))
    profile, fit = ranked[0]
    others = ", ".join(other.id for other, _ in ranked[1:])
    less = f"; {others} would fit too, less precisely" if others else ""
    explanations.append(_sentence(profile, fit) + less)
    return profile


def _sentence(profile: Profile, fit: _Fit) -> str:
    name = f" ({profile.name})" if profile.name else ""
    return f"{profile.id}{name}: {fit.why}"


def _fit(facts: Facts, profile: Profile) -> _Fit | None:
    if not profile.match:
        return _Fit((0, 0, 0, 0), "applies to every machine")
    fits = [fit for block in profile.match if (fit := _block_fit(facts, block)) is not None]
    return max(fits, key=lambda fit: fit.score) if fits else None


def _block_fit(facts: Facts, block: Block) -> _Fit | None:
    compatible = ids = ties = 0
    why: list[str] = []
    if block.compatible:
        hit = _compatible_hit(facts.compatible, block.compatible)
        if hit is None:
            return None
        compatible, text = hit
        why.append(text)
    if block.pci:
        device = next((device for device in facts.pci if _is_pci(device, block)), None)
        if device is None:
            return None
        ids += 1
        why.append(f"PCI device {device.id} is there")
    if block.usb:
        usb = next((device.id for device in facts.usb if device.id in block.usb), None)
        if usb is None:
            return None
        ids += 1
        why.append(f"USB device {usb} is there")
    if block.architecture:
        if facts.architecture not in block.architecture:
            return None
        why.append(f"architecture {facts.architecture}")
    if block.cpu_flags:
        if not set(block.cpu_flags) <= set(facts.cpu.flags):
            return None
        why.append(f"every CPU has {', '.join(block.cpu_flags)}")
    if block.model:
        if not any(fnmatchcase(facts.model, pattern) for pattern in block.model):
            return None
        ties += 1
        why.append(f'the model is "{facts.model}"')
    for key, pattern in block.dmi.items():
        if not fnmatchcase(facts.dmi.get(key, ""), pattern):
            return None
        ties += 1
        why.append(f'{key} is "{facts.dmi.get(key, "")}"')
    return _Fit((compatible, ids, len(block.cpu_flags), ties), ", ".join(why))


def _compatible_hit(entries: Sequence[str], patterns: Sequence[str]) -> tuple[int, str] | None:
    for position, entry in enumerate(entries[:_ENTRIES]):
        exact = entry in patterns
        if exact or any(fnmatchcase(entry, pattern) for pattern in patterns):
            place = f'compatible "{entry}" is entry {position + 1} of {len(entries)}'
            return 2 * (_ENTRIES - position) + exact, place
    return None


def _is_pci(device: PciDevice, block: Block) -> bool:
    return (
        (device.id in block.pci or f"{device.vendor}:*" in block.pci)
        and (not block.pci_class or any(fnmatchcase(device.class_, pattern) for pattern in block.pci_class))
        and (not block.pci_revision or device.revision in block.pci_revision)
    )
