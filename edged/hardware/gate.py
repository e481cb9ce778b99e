"""May a candidate be tried here at all? Looks at nodes, drivers, libraries and the package; starts nothing.

Every rejection says in one sentence what a person could do about it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import msgspec

from edged.hardware import runtime_rules
from edged.hardware.candidates import Candidate
from edged.hardware.facts import Facts
from edged.hardware.host import Host, Missing
from edgekit.packages.manifest import Manifest, Variant
from edgekit.runtimes.libraries import road

USER = "edged"
"""The account that the systemd unit runs edged under."""
_DIGITS = re.compile(r"\d+")


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that may be probed, with the variants of the package it can run, best first.

    `notes` says what could not be checked.
    """

    candidate: Candidate
    variants: list[Variant]
    notes: list[str] = []


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate that is not tried: why, and what would change that, one sentence each (without a full stop)."""

    candidate: str  # its id
    reason: str
    remedy: str


def gate(
    candidate: Candidate,
    facts: Facts,
    host: Host,
    package_manifest: Manifest,
    installed_runtimes: Collection[tuple[str, str]],
) -> Accepted | Rejection:
    """Check one candidate for one model package.

    `installed_runtimes` are the roads whose libraries are here, as `edgekit.runtimes.installed_roads` finds them. The
    checks go from what only the owner of the device can change to what the maker of the package can; the first that
    fails is reported. Never raises.
    """
    notes: list[str] = []
    fault = (
        _disabled(candidate)
        or _undrivable(candidate)
        or _nodes(candidate, facts, host)
        or _driver(candidate, facts, host, notes)
        or _libraries(candidate, host)
        or _runtime(candidate, installed_runtimes)
    )
    if fault is not None:
        return _reject(candidate, fault)
    variants = _variants(candidate, package_manifest)
    if not variants:
        return _reject(candidate, _no_variant(candidate, package_manifest))
    return Accepted(candidate=candidate, variants=variants, notes=notes)


def gate_all(
    candidates: Collection[Candidate],
    facts: Facts,
    host: Host,
    package_manifest: Manifest,
    installed_runtimes: Collection[tuple[str, str]],
) -> tuple[list[Accepted], list[Rejection]]:
    """`gate` for each, in order. For a package that only compares with a golden picture there is nothing to choose."""
    accepted: list[Accepted] = []
    rejected: list[Rejection] = []
    if all(variant.runtime == "template" for variant in package_manifest.variants):
        return accepted, rejected
    for candidate in candidates:
        answer = gate(candidate, facts, host, package_manifest, installed_runtimes)
        if isinstance(answer, Accepted):
            accepted.append(answer)
        else:
            rejected.append(answer)
    return accepted, rejected


_Fault = tuple[str, str]  # reason, remedy


def _reject(candidate: Candidate, fault: _Fault) -> Rejection:
    return Rejection(candidate=candidate.id, reason=fault[0], remedy=fault[1])


def _disabled(candidate: Candidate) -> _Fault | None:
    if not candidate.disabled_by:
        return None
    return (
        f"the profile {candidate.disabled_by} forbids it",
        f'take "{candidate.id}" out of "disable" in the profile {candidate.disabled_by}',
    )


def _undrivable(candidate: Candidate) -> _Fault | None:
    if road(candidate.runtime, candidate.provider) is not None:
        return None
    rule = runtime_rules.RULES[candidate.runtime, candidate.provider]
    return f"edged cannot use {candidate.road} yet", rule.install


def _nodes(candidate: Candidate, facts: Facts, host: Host) -> _Fault | None:
    """One of the nodes must be there, belong to the right driver as far as that is known, and be openable."""
    requires = candidate.requires
    if not requires.any_node:
        return None
    drivers = {path: node.driver for node in facts.nodes if node.driver for path in (node.path, *node.aliases)}
    closed: list[tuple[str, str]] = []
    for path in (path for pattern in requires.any_node for path in host.glob(pattern)):
        node = host.node(path)
        if node is None or _is_foreign(drivers.get(path), requires.driver):
            continue
        if node.openable:
            return None
        closed.append((path, node.group))
    if not closed:
        return _no_node(candidate, facts, host)
    path, group = closed[0]
    group = group if group not in ("", "root") else next(iter(requires.group), "")
    if group:
        return f"{USER} may not open {path}", f"add the user {USER} to the group {group}"
    return f"{USER} may not open {path}", f"give {path} to a group with a udev rule and add the user {USER} to it"


def _no_node(candidate: Candidate, facts: Facts, host: Host) -> _Fault:
    reason = f"there is no device node {' or '.join(candidate.requires.any_node)}"
    names = " or ".join(candidate.requires.driver)
    if not names:
        return reason, "use the board vendor's kernel, whose accelerator driver makes the device node"
    if any(_is_loaded(name, facts, host) for name in candidate.requires.driver):
        return reason, f"look into the kernel log for why the driver {names} made no node for this device"
    return f"the kernel driver {names} is not loaded", f"load the kernel driver {names}"


def _is_foreign(driver: str | None, wanted: Collection[str]) -> bool:
    return driver is not None and bool(wanted) and driver.lower() not in {name.lower() for name in wanted}


def _driver(candidate: Candidate, facts: Facts, host: Host, notes: list[str]) -> _Fault | None:
    requires = candidate.requires
    by_node = bool(requires.any_node)  # an openable node proves its driver
    if requires.driver and not by_node and not any(_is_loaded(name, facts, host) for name in requires.driver):
        names = " or ".join(requires.driver)
        return f"the kernel driver {names} is not loaded", f"load the kernel driver {names}"
    for name, lowest in requires.driver_min.items():
        version = _driver_version(name, facts, host)
        if not version:
            notes.append(f"the version of the kernel driver {name} is unknown; {lowest} or newer is needed")
        elif _version(version) < _version(lowest):
            return (
                f"the kernel driver {name} is {version}, older than {lowest}",
                f"update the kernel driver {name} to {lowest} or newer",
            )
    return None


def _is_loaded(name: str, facts: Facts, host: Host) -> bool:
    bound = {device.driver.lower() for device in facts.pci} | {node.driver.lower() for node in facts.nodes}
    loaded = bound | {driver.lower() for driver in facts.drivers}
    return name.lower() in loaded or bool(host.glob(f"/sys/module/{name}") or host.glob(f"/sys/bus/*/drivers/{name}"))


def _driver_version(name: str, facts: Facts, host: Host) -> str:
    known = {driver.lower(): version for driver, version in facts.drivers.items()}
    if known.get(name.lower()):
        return known[name.lower()]
    content = host.read(f"/sys/module/{name}/version")
    return "" if isinstance(content, Missing) else content.decode("ascii", "replace").strip()[:32]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part[:9]) for part in _DIGITS.findall(text)[:4])


def _libraries(candidate: Candidate, host: Host) -> _Fault | None:
    for name in candidate.requires.library:
        if not any(host.glob(f"{directory}/{name}") for directory in runtime_rules.LIBRARY_DIRECTORIES):
            return f"the library {name} is not installed", runtime_rules.LIBRARIES[name]
    return None


def _runtime(candidate: Candidate, installed: Collection[tuple[str, str]]) -> _Fault | None:
    if (candidate.runtime, candidate.provider) in installed:
        return None
    rule = runtime_rules.RULES[candidate.runtime, candidate.provider]
    return f"the runtime {candidate.road} is not installed here", rule.install


def _variants(candidate: Candidate, manifest: Manifest) -> list[Variant]:
    """The candidate's order of precisions first, then the author's order."""
    order = candidate.precision
    fitting = [
        variant
        for variant in manifest.variants
        if variant.runtime == candidate.runtime
        and variant.precision in order
        and (variant.target in candidate.artefact.targets if candidate.artefact.targets else variant.target is None)
    ]
    return sorted(fitting, key=lambda variant: order.index(variant.precision))


def _no_variant(candidate: Candidate, manifest: Manifest) -> _Fault:
    artefact = candidate.artefact
    target = artefact.targets[0] if artefact.targets else ""
    what = f"{candidate.runtime}/{target}" if target else candidate.runtime
    precision = " or ".join(candidate.precision)
    return (
        f"the package {manifest.ref} has no {precision} variant for {what}",
        f"make an {candidate.precision[0]} variant with "
        + runtime_rules.converter(artefact.format, target, candidate.precision[0]),
    )
