"""Which settings are worth measuring: first one for each way and file, then variations of the best of them. Pure."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from edged.hardware.candidates import Candidate
from edged.hardware.facts import Facts
from edged.hardware.gate import Accepted
from edged.hardware.settings import Setting
from edgekit.packages.manifest import Precision, Variant

MAX_POINTS = 12
"""Settings measured for one model, the first look at each file included."""
ISOLATED = frozenset((("rknnlite", "npu"), ("hailort", "npu"), ("litert", "edgetpu")))
"""Vendors' libraries that run in a process of their own, so that a crash costs one picture and not the worker."""

_PRECISE: tuple[Precision, ...] = ("fp32", "fp16", "int8")

Interpreters = Mapping[tuple[str, str], str]
"""(runtime, provider) -> Python of an environment that has it, where it is not ours."""


class Cpus(NamedTuple):
    """`usable`: threads that may run at once. `big`: how many of those are on the fastest kind of core."""

    usable: int
    big: int


def usable_cpus(facts: Facts) -> Cpus:
    """From the CPUs this process may use and the time that its control group grants; never less than one.

    A quota of 1.5 CPUs counts as one: a second thread would only be stopped half of the time.
    """
    allowed = set(facts.cpu.allowed) or set(range(max(1, facts.cpu.count)))
    usable = len(allowed)
    if facts.cpu_quota is not None:
        usable = min(usable, max(1, math.floor(facts.cpu_quota)))
    fastest = facts.cpu.clusters[0] if facts.cpu.clusters else None
    if fastest is None or not allowed & set(fastest.cpus):
        return Cpus(usable, usable)
    return Cpus(usable, max(1, min(usable, len(allowed & set(fastest.cpus)), fastest.cores or usable)))


def first_looks(accepted: Sequence[Accepted], cpus: Cpus, interpreters: Interpreters) -> list[tuple[Accepted, Setting]]:
    """One setting for each accepted candidate and file: one thread on the CPU, the profile's own options elsewhere.

    The CPU comes first, because its answers are what the others are compared with; then by prior.
    """
    pairs = [(one, variant) for one in accepted for variant in one.variants]
    pairs.sort(key=lambda pair: (_accelerated(pair[0].candidate), -pair[0].candidate.prior))
    return [(one, _base(one.candidate, variant, cpus, interpreters)) for one, variant in pairs]


def in_turn(looks: Sequence[tuple[Accepted, Setting]]) -> list[tuple[Accepted, Setting]]:
    """The same in the order in which they are proved: on the CPU the most precise file before the others.

    Its answers are what the others are compared with. So an 8-bit file that saturates on this CPU shows, and a float
    file is not measured by an 8-bit one.
    """
    return sorted(looks, key=lambda look: (look[1].accelerated, _PRECISE.index(look[1].precision)))


def variations(candidate: Candidate, base: Setting, cpus: Cpus) -> list[Setting]:
    """Other settings of the same way and file, most promising first. `base` itself is not among them."""
    found = list(_cpu_variations(base, cpus) if _uses_cpu(candidate) else _device_variations(candidate, base))
    unique = {setting.key: setting for setting in found}
    unique.pop(base.key, None)
    return list(unique.values())


def default_setting(base: Setting, cpus: Cpus) -> Setting:
    """What the runtime would do if nobody told it: a thread for each CPU, spinning; LiteRT takes one."""
    if base.runtime != "onnxruntime" or base.provider != "cpu":
        return base
    return msgspec.structs.replace(base, threads=cpus.usable, workers=1, spinning=cpus.usable > 1)


def _cpu_variations(base: Setting, cpus: Cpus) -> Iterable[Setting]:
    counts = {cpus.usable, cpus.big, min(cpus.big + 1, cpus.usable), min(2, cpus.usable), 1}
    for threads in sorted(counts, reverse=True):
        workers = max(1, cpus.usable // threads)
        one = msgspec.structs.replace(base, threads=threads, workers=workers, spinning=False)
        yield one
        if threads > 1 and base.runtime == "onnxruntime" and base.provider == "cpu":
            yield msgspec.structs.replace(one, spinning=True)


def _device_variations(candidate: Candidate, base: Setting) -> Iterable[Setting]:
    names = sorted(candidate.search)
    for values in itertools.product(*(candidate.search[name] for name in names)):
        options = {**base.provider_options, **dict(zip(names, values, strict=True))}
        for workers in candidate.workers or [base.workers]:
            yield msgspec.structs.replace(base, provider_options=options, workers=workers)


def _base(candidate: Candidate, variant: Variant, cpus: Cpus, interpreters: Interpreters) -> Setting:
    road = (candidate.runtime, candidate.provider)
    own = sys.executable if road in ISOLATED else ""
    workers = cpus.usable if _uses_cpu(candidate) else (candidate.workers or [1])[0]
    return Setting(
        candidate=candidate.id,
        variant=variant.file,
        runtime=candidate.runtime,
        provider=candidate.provider,
        provider_options=dict(candidate.options),
        threads=1,
        workers=workers,
        precision=variant.precision,
        interpreter=interpreters.get(road, own),
    )


def _accelerated(candidate: Candidate) -> bool:
    return candidate.provider != "cpu"


def _uses_cpu(candidate: Candidate) -> bool:
    """Whether the CPU does the work, so that threads matter."""
    return candidate.provider == "cpu" or candidate.options.get("device_type", "").startswith("CPU")
