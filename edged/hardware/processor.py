"""Facts about the CPUs: what all of them can do, which are fast, which of them this process may use."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from edged.hardware.host import Host, natural
from edged.hardware.reading import cpus, lines, number, text, tidy
from edged.hardware.shapes import Cluster, CpuFacts

_CPUINFO_LIMIT = 2 * 1024 * 1024
_FLAG_LIMIT, _FLAGS_LIMIT = 64, 1024
_FLAG_KEYS = ("flags", "features", "hart isa", "isa")
CPUINFO_KEYS = (*_FLAG_KEYS, "processor", "vendor_id", "cpu implementer", "cpu part", "model name", "uarch")
"""What is read of /proc/cpuinfo, in lower case: no `Serial`."""
_TOP = "/sys/devices/system/cpu"
# Frequencies of different core types do not compare: a Cortex-A55 may run faster than an A76. Arm's small cores:
_SMALL = {f"0x41:{part}" for part in ("0xc07", "0xd03", "0xd04", "0xd05", "0xd46", "0xd80")} | {"atom"}
_BAND = 1.1
# Boost makes single cores of one x86 processor up to 15 % faster than their twins.
_BAND_X86 = 1.2

Blocks = list[dict[str, str]]


def cpuinfo(host: Host) -> Blocks:
    """The blocks of /proc/cpuinfo with their keys in lower case; only `CPUINFO_KEYS`."""
    blocks: Blocks = [{}]
    text_lines = lines(host, "/proc/cpuinfo", _CPUINFO_LIMIT)
    if sum(map(len, text_lines)) + len(text_lines) > _CPUINFO_LIMIT:
        del text_lines[-1:]  # cut off in the middle: its flags would be missing in the intersection
    for line in text_lines:
        key, colon, value = line.partition(":")
        key = " ".join(key.lower().split())
        if not line.strip() or (key == "processor" and "processor" in blocks[-1]):
            blocks.append({})
        if colon and key in CPUINFO_KEYS:
            blocks[-1][key] = tidy(value)
    return [block for block in blocks if block]


def architecture(host: Host, blocks: Blocks) -> str:
    """As `uname -m` says it; kernels before 6.1 do not say it in a file, then as the processor looks."""
    stated = text(host, "/proc/sys/kernel/arch")
    if stated:
        return stated
    flags = set(_flags(blocks))
    keys = {key for block in blocks for key in block}
    if "cpu implementer" in keys:
        return "aarch64" if "asimd" in flags else "armv7l"
    if "isa" in keys or "hart isa" in keys:
        return "riscv64" if "rv64" in flags else "riscv32"
    if "vendor_id" in keys and "flags" in keys:
        return "x86_64" if "lm" in flags else "i686"
    return ""


def processor(host: Host, blocks: Blocks, allowed: Collection[int] | None) -> CpuFacts:
    """Gather the facts; `allowed` are CPUs this process may use at most, None for all online ones."""
    by_number = {int(b["processor"]): b for b in blocks if re.fullmatch("[0-9]{1,4}", b.get("processor", ""))}
    online = cpus(text(host, f"{_TOP}/online", 4096)) or sorted(by_number) or sorted(set(allowed or ())) or [0]
    usable = sorted(set(online) & set(allowed)) if allowed is not None else online
    names = (block.get("model name") or block.get("uarch") for block in blocks)
    return CpuFacts(
        count=len(online),
        allowed=usable or online,
        flags=_flags(blocks),
        clusters=_clusters(host, online, by_number),
        name=next((name for name in names if name), "")[:128],
    )


def _flags(blocks: Blocks) -> list[str]:
    common: set[str] | None = None
    for block in blocks:
        key = next((key for key in _FLAG_KEYS if key in block), None)
        if key is not None:
            found = _extensions(block[key]) if key.endswith("isa") else set(block[key].lower().split())
            common = found if common is None else common & found
    return sorted(flag[:_FLAG_LIMIT] for flag in common or ())[:_FLAGS_LIMIT]


def _extensions(isa: str) -> set[str]:
    """ "rv64imafdcv_zicsr_zba" -> rv64, i, m, a, f, d, c, v, zicsr, zba."""
    first, *more = isa.lower().split("_")
    match = re.fullmatch("(rv32|rv64)([a-z]*)", first)
    return {*(filter(None, more)), match[1], *match[2]} if match else set(filter(None, more))


def _clusters(host: Host, online: Sequence[int], blocks: Mapping[int, dict[str, str]]) -> list[Cluster]:
    types = _types(host, online, blocks)
    capacity = {cpu: value for cpu in online if (value := number(host, f"{_TOP}/cpu{cpu}/cpu_capacity") or 0) > 0}
    speed = _max_khz(host)
    band = _BAND_X86 if any("flags" in block for block in blocks.values()) else _BAND
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    # A device tree without capacities gives every CPU 1024: then the frequencies say more.
    if len(capacity) == len(online) and len(set(capacity.values())) > 1:
        bands = _bands(capacity.values(), band)
        for cpu in online:
            groups[bands[capacity[cpu]], ""].append(cpu)
    else:
        known = {cpu: speed[cpu] for cpu in online if cpu in speed}
        bands = _bands(known.values(), band) if len(known) == len(online) else {}
        for cpu in online:
            groups[bands.get(known.get(cpu, 0), 0), types.get(cpu, "")].append(cpu)
    order = sorted(groups, key=lambda key: (key[1] in _SMALL, -key[0], groups[key][0]))
    return [_cluster(host, groups[key], capacity, speed, types) for key in order]


def _cluster(
    host: Host, members: list[int], capacity: Mapping[int, int], speed: Mapping[int, int], types: Mapping[int, str]
) -> Cluster:
    siblings = {text(host, f"{_TOP}/cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in members}
    return Cluster(
        cpus=members,
        cores=len(siblings),
        capacity=max((capacity[cpu] for cpu in members if cpu in capacity), default=None),
        max_khz=max((speed[cpu] for cpu in members if cpu in speed), default=None),
        types=sorted({types[cpu] for cpu in members if cpu in types}),
    )


def _bands(values: Iterable[int], ratio: float) -> dict[int, int]:
    """Value -> number of its band; a band spans at most `ratio` from its lowest value."""
    found: dict[int, int] = {}
    lowest, band = 0, 0
    for value in sorted(set(values)):
        if value > lowest * ratio:
            lowest, band = value, band + 1
        found[value] = band
    return found


def _max_khz(host: Host) -> dict[int, int]:
    speed: dict[int, int] = {}
    for path in sorted(host.glob(f"{_TOP}/cpufreq/policy*/cpuinfo_max_freq"), key=natural):
        policy = path.rpartition("/")[0]
        value = number(host, path) or 0
        members = cpus(text(host, f"{policy}/related_cpus", 4096) or text(host, f"{policy}/affected_cpus", 4096))
        if value > 0:
            speed.update(dict.fromkeys(members, value))
    return speed


def _types(host: Host, online: Iterable[int], blocks: Mapping[int, dict[str, str]]) -> dict[int, str]:
    # Hybrid x86 processors have a counter unit for each core type, which lists its CPUs.
    types = {cpu: kind for kind in ("core", "atom") for cpu in cpus(text(host, f"/sys/devices/cpu_{kind}/cpus", 4096))}
    for cpu in online:
        midr = number(host, f"{_TOP}/cpu{cpu}/regs/identification/midr_el1")
        block = blocks.get(cpu, {})
        if midr is not None and midr > 0:
            types[cpu] = f"0x{midr >> 24 & 0xFF:02x}:0x{midr >> 4 & 0xFFF:03x}"
        elif "cpu implementer" in block and "cpu part" in block:
            types[cpu] = f"{block['cpu implementer'][:8]}:{block['cpu part'][:8]}".lower()
    return types
