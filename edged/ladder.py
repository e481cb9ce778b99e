"""From a choice to the setting in use: what still works, what is gentle enough for the heat, and whether a change pays.

Pure. A setting that is None means the safe way: the first variant that any machine can run, one thread a run.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from edged.hardware.settings import Choice, Measurement, Objective, Setting

GENTLER = 0.8
"""A setting counts as gentler if it takes at most this share of the other's CPU time a picture."""
WORTH = 0.10
"""Relative gain from which a change is worth the restart of the worker."""


def usable(choice: Choice | None, broken: Collection[str]) -> Setting | None:
    """The best setting of the choice whose key is not in `broken`; None if there is none."""
    if choice is None:
        return None
    return next((one for one in (choice.setting, *choice.alternatives) if one.key not in broken), None)


def steps(choice: Choice | None, broken: Collection[str]) -> list[Setting]:
    """The setting in use when cool, then ever gentler ones; [] if only the safe way is left, which is gentle already.

    First measured ones that take clearly less CPU time a picture, each the quickest of its kind; then fewer threads.
    """
    first = usable(choice, broken)
    if choice is None or first is None:
        return []
    found = [first]
    cpu = next((m.cpu_ms for m in choice.measurements if m.setting == first), None)
    if cpu is not None:
        for one in sorted(choice.measurements, key=lambda m: m.p50_ms):
            if one.cpu_ms <= cpu * GENTLER and one.setting.key not in broken:
                found.append(one.setting)
                cpu = one.cpu_ms
    last = found[-1]
    while last.threads > 1 or last.workers > 1 or last.spinning:
        if last.threads > 1:
            last = msgspec.structs.replace(last, threads=last.threads // 2, spinning=False)
        else:
            last = msgspec.structs.replace(last, workers=max(1, last.workers // 2), spinning=False)
        found.append(last)
    return list({one.key: one for one in found}.values())


def pick(choice: Choice | None, broken: Collection[str], level: int, alone: bool) -> Setting | None:
    """The setting to use at this step below the best. Threads spin only in a worker with no other model beside it."""
    ladder = steps(choice, broken)
    if not ladder:
        return None
    setting = ladder[min(level, len(ladder) - 1)]
    return setting if alone or not setting.spinning else msgspec.structs.replace(setting, spinning=False)


def gain(choice: Choice, current: Setting | None, safe_file: str = "") -> float | None:
    """How much better the chosen setting is than the one in use: 0.25 for a quarter less time, CPU or more pictures.

    None if the one in use was not measured. For the safe way, whose variant is `safe_file`, it is the measured setting
    that runs in the same way.
    """
    new = _measured(choice, choice.setting)
    old = _measured(choice, current) if current is not None else _safe(choice, safe_file)
    if new is None or old is None:
        return None
    return 1.0 - _cost(new, choice.objective) / max(_cost(old, choice.objective), 1e-9)


def is_worth(choice: Choice, current: Setting | None, safe_file: str = "") -> bool:
    """Whether to change from the setting in use to the chosen one. What was never compared is worth one change."""
    if current == choice.setting:
        return False
    better = gain(choice, current, safe_file)
    return better is None or better >= WORTH


def _measured(choice: Choice, setting: Setting) -> Measurement | None:
    return next((one for one in choice.measurements if one.setting == setting), None)


def _safe(choice: Choice, file: str) -> Measurement | None:
    for one in choice.measurements:
        setting = one.setting
        if setting.variant == file and setting.threads == 1 and not (setting.accelerated or setting.spinning):
            return one
    return None


def _cost(measurement: Measurement, objective: Objective) -> float:
    if objective == "throughput":
        return 1.0 / max(measurement.throughput, 1e-9)
    return measurement.cpu_ms if objective == "efficiency" else measurement.p50_ms
