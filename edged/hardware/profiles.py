"""Firmware profiles: TOML files that say what to look for on a machine and what to try there, read strictly.

A profile is a guess with requirements, never a decision. It holds no code, no shell command and no path of a library.
Schema and meaning of every key: `firmware_profiles/README.md`.
"""

from __future__ import annotations

import difflib
import math
import re
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.hardware import runtime_rules
from edgekit import toml
from edgekit.packages.manifest import Precision, Runtime

MAX_PROFILE = 64 << 10
"""Bytes of one profile."""
MAX_PROFILES = 1000
MAX_POINTS = 64
"""Combinations that a candidate's `search` and `workers` may give; about twelve are ever measured."""
OVERRIDES = Path("/etc/edged/profile.d")

Layer = Literal["board", "soc", "accel", "cpu", "site"]
Status = Literal["measured", "untested"]

_ID = re.compile(r"(board|soc|accel|cpu|site)/[a-z0-9][a-z0-9._-]{0,63}")
_CANDIDATE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_DISABLE = re.compile(r"(board|soc|accel|cpu|site)/[a-z0-9][a-z0-9._-]{0,63}(#[a-z0-9][a-z0-9._-]{0,31})?")
_COMPATIBLE = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9*?._+-]*,[A-Za-z0-9*?._+-]+")
_PCI = re.compile(r"[0-9a-f]{4}:([0-9a-f]{4}|\*)")
_PCI_CLASS = re.compile(r"[0-9a-f?]{6}")
_PCI_REVISION = re.compile(r"[0-9a-f]{2}")
_USB = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NODE = re.compile(r"/dev/[A-Za-z0-9_*?:./\[\]-]{1,120}")
_TARGET = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,3}")
_DMI_KEYS = ("sys_vendor", "product_name", "product_family", "product_version", "board_vendor", "board_name")


class ProfileError(ValueError):
    """A profile that must not be used; the message names the file, the key and what would be right."""


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every table in a profile."""


class Block(_Table, frozen=True, kw_only=True):
    """One [[match]]: all keys must fit (AND), of a list one entry is enough (OR), except `cpu_flags`: all of them."""

    compatible: list[str] = []  # globs allowed
    model: list[str] = []  # globs on the device tree's model
    dmi: dict[str, str] = {}  # key of /sys/class/dmi/id -> glob
    pci: list[str] = []  # vendor:device or vendor:*
    pci_class: list[str] = []  # 6 hex digits, ? for any, of the same function
    pci_revision: list[str] = []  # 2 hex digits, of the same function
    usb: list[str] = []  # vendor:product
    architecture: list[str] = []  # as `uname -m`
    cpu_flags: list[str] = []  # every CPU has all of them


class Thermal(_Table, frozen=True, kw_only=True):
    """Zones by type, first found, and the limits in °C: slow down at `soft_c`, stop at `hard_c`."""

    zones: dict[str, list[str]] = {}
    soft_c: Annotated[float, Meta(ge=30, le=125)] | None = None
    hard_c: Annotated[float, Meta(ge=30, le=125)] | None = None


class Artefact(_Table, frozen=True, kw_only=True):
    """The file a candidate needs: its format, and for files compiled off the device the chips it may be made for."""

    format: Literal["onnx", "tflite", "rknn", "hef"]
    targets: list[str] = []


class Requires(_Table, frozen=True, kw_only=True):
    """What must be there before a candidate is tried."""

    any_node: list[str] = []  # globs below /dev; one of them must be openable
    library: list[str] = []  # names of `runtime_rules.LIBRARIES`; all of them
    group: list[str] = []  # named in the remedy when a node cannot be opened
    driver: list[str] = []  # kernel drivers, one of which must be loaded
    driver_min: dict[str, str] = {}  # kernel driver -> lowest version


class CandidateSpec(_Table, frozen=True, kw_only=True):
    """One [[candidate]]: a way of running models that is worth a try on matching hardware."""

    id: str
    runtime: Runtime
    provider: str = "cpu"
    artefact: Artefact
    precision: list[Precision]  # in order of preference
    prior: Annotated[int, Meta(ge=0, le=100)]  # the higher, the earlier it is measured; not a score
    options: dict[str, str] = {}
    search: dict[str, list[str]] = {}  # option -> values that the benchmark may try
    workers: list[Annotated[int, Meta(ge=1, le=16)]] = []  # concurrent runs that the benchmark may try
    requires: Requires = Requires()
    warmup_s: Annotated[float, Meta(ge=0, le=600)] = 0.0
    probe_timeout_s: Annotated[float, Meta(ge=1, le=900)] = 60.0
    notes: str = ""


class Hint(_Table, frozen=True, kw_only=True):
    """Shown to people, never used to decide: makers count TOPS in their own ways."""

    tops_int8: Annotated[float, Meta(gt=0, le=10_000)] | None = None
    text: str = ""


class Profile(_Table, frozen=True, kw_only=True):
    """One file: what it is about (`match`), what to try (`candidate`), and what a board or site forbids (`disable`)."""

    schema: Literal[1]
    id: str
    version: Annotated[int, Meta(ge=1)]
    layer: Layer
    status: Status = "untested"
    name: str = ""  # of the thing, for people
    sources: list[str] = []  # where the ids and limits come from
    match: list[Block] = []
    thermal: Thermal = Thermal()
    candidate: list[CandidateSpec] = []
    disable: list[str] = []  # "soc/rk3588" or "soc/rk3588#teflon"
    hint: Hint = Hint()
    notes: str = ""

    @property
    def ref(self) -> str:
        """id@version, as it goes into the key of stored choices."""
        return f"{self.id}@{self.version}"


def profile_directories() -> list[Path]:
    """Where profiles are: those of edged (source checkout, else as installed), then the overrides of this site."""
    checkout = Path(__file__).resolve().parents[2] / "firmware_profiles"
    installed = Path(sys.prefix) / "share" / "edged" / "firmware_profiles"
    shipped = [checkout] if (checkout / "cpu").is_dir() else [installed]
    return [*shipped, OVERRIDES]


def parse_profile(data: bytes, origin: str) -> Profile:
    """Read one profile. Raises ProfileError naming `origin`, the key and what is allowed."""
    try:
        profile = toml.convert(toml.read(data, MAX_PROFILE), Profile)
        _check(profile)
    except toml.TomlError as error:
        raise ProfileError(error.at(f"the profile {origin}")) from None
    return profile


def load_profiles(directories: Sequence[Path] | None = None) -> list[Profile]:
    """All profiles of `directories`, strictly. Raises ProfileError for the first one that cannot be used."""
    profiles, problems = read_profiles(directories)
    if problems:
        raise ProfileError(problems[0])
    return profiles


def read_profiles(directories: Sequence[Path] | None = None) -> tuple[list[Profile], list[str]]:
    """All profiles that can be used, and one sentence for each that cannot: a typo must not stop a device.

    A later directory's profile replaces an earlier one's with the same id. Directories that are missing are empty.
    """
    found: dict[str, Profile] = {}
    problems: list[str] = []
    for directory in profile_directories() if directories is None else directories:
        here: dict[str, Path] = {}
        try:
            paths = sorted(directory.rglob("*.toml"))
        except OSError as error:
            problems.append(f"the profiles in {directory} cannot be read: {error.strerror or error}")
            continue
        if len(paths) > MAX_PROFILES:
            problems.append(f"{directory} has {len(paths)} profiles; the first {MAX_PROFILES} are used")
        for path in paths[:MAX_PROFILES]:
            try:
                profile = parse_profile(_read(path), str(path))
            except ProfileError as error:
                problems.append(str(error))
                continue
            if profile.id in here:
                problems.append(f'{path} and {here[profile.id]} both have the id "{profile.id}"; the first one is used')
                continue
            here[profile.id] = path
            found[profile.id] = profile
    return list(found.values()), problems


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ProfileError(f"the profile {path} is not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_PROFILE + 1)
    except OSError as error:
        raise ProfileError(f"the profile {path} cannot be read: {error.strerror or error}") from None


# --- checking what the types cannot say -----------------------------------------------------------------------------


def _check(profile: Profile) -> None:
    _each("id", [profile.id], _ID, 'a layer and a name, such as "soc/rk3588", belong there')
    if not profile.id.startswith(profile.layer + "/"):
        raise toml.TomlError(f'"id" is {toml.show(profile.id)}', f'it must begin with "{profile.layer}/"')
    if profile.layer != "site":
        if not any(source.strip() for source in profile.sources):
            raise toml.TomlError('"sources" is empty', "name where its ids and limits come from")
        if not profile.match:
            raise toml.TomlError("[[match]] is missing", "only a profile of the layer site may apply everywhere")
    if profile.disable and profile.layer not in ("board", "site"):
        raise toml.TomlError('"disable" is set', "only a profile of the layers board and site may forbid candidates")
    _each("disable", profile.disable, _DISABLE, '"profile" or "profile#candidate" belongs there')
    for index, block in enumerate(profile.match):
        _check_block(block, f"match[{index}]")
    for name, zones in profile.thermal.zones.items():
        _each(f"thermal.zones.{name}", zones, _WORD, "types of thermal zones belong there")
    soft, hard = profile.thermal.soft_c, profile.thermal.hard_c
    if soft is not None and hard is not None and soft >= hard:
        raise toml.TomlError(f'"thermal.soft_c" is {soft:g}', f"it must be below hard_c, {hard:g}")
    seen: set[str] = set()
    for index, candidate in enumerate(profile.candidate):
        _check_candidate(candidate, f"candidate[{index}]")
        if candidate.id in seen:
            raise toml.TomlError(f'"candidate[{index}].id" is "{candidate.id}" again', "each one needs its own id")
        seen.add(candidate.id)


def _check_block(block: Block, path: str) -> None:
    if not any(getattr(block, field) for field in block.__struct_fields__):
        raise toml.TomlError(f'"{path}" is empty', "it would match every machine")
    if (block.pci_class or block.pci_revision) and not block.pci:
        raise toml.TomlError(f'"{path}" has a PCI class or revision but no "pci"', "name the vendor, such as 10de:*")
    _each(f"{path}.compatible", block.compatible, _COMPATIBLE, '"vendor,device" belongs there')
    _each(f"{path}.pci", block.pci, _PCI, "vendor:device in lower-case hex, or vendor:*, belongs there")
    _each(f"{path}.pci_class", block.pci_class, _PCI_CLASS, "6 lower-case hex digits or ? belong there")
    _each(f"{path}.pci_revision", block.pci_revision, _PCI_REVISION, "2 lower-case hex digits belong there")
    _each(f"{path}.usb", block.usb, _USB, "vendor:product in lower-case hex belongs there")
    _each(f"{path}.architecture", block.architecture, _WORD, "what `uname -m` prints belongs there")
    _each(f"{path}.cpu_flags", block.cpu_flags, _WORD, "a flag of /proc/cpuinfo belongs there")
    _one_of(f"{path}.dmi", block.dmi, _DMI_KEYS)


def _check_candidate(spec: CandidateSpec, path: str) -> None:
    _each(f"{path}.id", [spec.id], _CANDIDATE_ID, "1 to 32 of a-z 0-9 . _ - belong there")
    rule = runtime_rules.RULES.get((spec.runtime, spec.provider))
    if rule is None:
        known = [provider for runtime, provider in runtime_rules.RULES if runtime == spec.runtime]
        raise _unknown(f"{path}.provider", spec.provider, known)
    if spec.artefact.format != rule.format:
        raise toml.TomlError(f'"{path}.artefact.format" is "{spec.artefact.format}"', f'"{rule.format}" belongs there')
    _each(f"{path}.artefact.targets", spec.artefact.targets, _TARGET, "names of chips belong there")
    if not spec.precision:
        raise toml.TomlError(f'"{path}.precision" is empty', "name at least one precision")
    for name, values in [*((n, [v]) for n, v in spec.options.items()), *spec.search.items()]:
        for value in values:
            if fault := runtime_rules.check_option(spec.runtime, spec.provider, name, value):
                raise toml.TomlError(f'"{path}.options"', fault)
    points = math.prod(map(len, spec.search.values())) * max(1, len(spec.workers))
    if not 1 <= points <= MAX_POINTS:
        raise toml.TomlError(f'"{path}.search" gives {points} combinations', f"1 to {MAX_POINTS} are allowed")
    _each(f"{path}.requires.any_node", spec.requires.any_node, _NODE, "a path below /dev belongs there")
    if any(".." in node for node in spec.requires.any_node):
        raise toml.TomlError(f'"{path}.requires.any_node" has ".." in it', "a path below /dev belongs there")
    _one_of(f"{path}.requires.library", spec.requires.library, list(runtime_rules.LIBRARIES))
    _each(f"{path}.requires.group", spec.requires.group, _WORD, "a group's name belongs there")
    _each(f"{path}.requires.driver", spec.requires.driver, _WORD, "a kernel driver's name belongs there")
    _each(f"{path}.requires.driver_min", spec.requires.driver_min, _WORD, "a kernel driver's name belongs there")
    _each(
        f"{path}.requires.driver_min",
        spec.requires.driver_min.values(),
        _VERSION,
        'a version such as "0.9.2" belongs there',
    )


def _each(key: str, values: Iterable[str], pattern: re.Pattern[str], advice: str) -> None:
    for value in values:
        if not pattern.fullmatch(value):
            raise toml.TomlError(f'"{key}" is {toml.show(value)}', advice)


def _one_of(key: str, values: Iterable[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise _unknown(key, value, known)


def _unknown(key: str, value: str, known: Sequence[str]) -> toml.TomlError:
    near = difflib.get_close_matches(value, known, n=1)
    advice = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(known)}"
    return toml.TomlError(f'"{key}" names {toml.show(value)}, which is unknown', advice)
