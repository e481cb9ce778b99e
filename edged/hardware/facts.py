"""Gather the facts about a machine, and the fingerprint under which measurements on it are stored."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection

import msgspec

from edged.hardware import devices
from edged.hardware.host import Host
from edged.hardware.limits import limits
from edged.hardware.processor import architecture, cpuinfo, processor
from edged.hardware.reading import cpus, lines, number, strings, text
from edged.hardware.shapes import Cluster, CpuFacts, DeviceNode, Facts, PciDevice, UsbDevice

__all__ = ["Cluster", "CpuFacts", "DeviceNode", "Facts", "PciDevice", "UsbDevice", "fingerprint", "gather"]

_DMI = ("sys_vendor", "product_name", "product_family", "product_version", "board_vendor", "board_name", "bios_version")
_DMI_PLACEHOLDERS = re.compile(
    r"(?i)(to be filled by o\.?e\.?m\.?|default string|not specified|not applicable|not available|none|n/?a|unknown|"
    r"o\.?e\.?m\.?|system (manufacturer|product name|version)|type[0-9]* - .*|x+|0+|invalid|[-. ]*)"
)
_COMPATIBLE_LIMIT = 32
_MEMORY_STEP = 512 * 1024 * 1024
# PCI classes and USB interface classes of what no model runs on: storage, network, sound, bridges, keyboards, cameras.
_ORDINARY_PCI = frozenset({"01", "02", "04", "05", "06", "07", "08", "09", "0a", "0c", "0d", "10", "13"})
_ACCELERATOR_PCI = "0880"
"""Within the ordinary base class 08: "other system peripheral", which the Edge TPU says it is."""
_ORDINARY_USB = frozenset({"01", "02", "03", "05", "06", "07", "08", "09", "0a", "0b", "0d", "0e", "e0"})
_USB_AFTER_FIRMWARE = {"1a6e:089a": "18d1:9302", "03e7:2150": "03e7:f63b", "03e7:2485": "03e7:f63b"}
"""Coral and Movidius sticks change their id when a runtime has loaded their firmware: the same device all the same."""


def gather(host: Host, allowed_cpus: Collection[int] | None = None) -> Facts:
    """Everything that can be learnt about the machine. Never raises; what cannot be read has its default.

    Args:
        host: the machine.
        allowed_cpus: CPUs this process may use at most; None to ask the host (the process's affinity).
    """
    blocks = cpuinfo(host)
    limited = limits(host)
    allowed = _affinity(host) if allowed_cpus is None else set(allowed_cpus)
    if limited.allowed is not None:
        allowed = set(limited.allowed) if allowed is None else allowed & set(limited.allowed)
    total = _memory_total(host)
    return Facts(
        architecture=architecture(host, blocks),
        compatible=[name for name in strings(host, "/proc/device-tree/compatible") if name][:_COMPATIBLE_LIMIT],
        model=text(host, "/proc/device-tree/model"),
        dmi=_dmi(host),
        pci=devices.pci(host),
        usb=devices.usb(host),
        npu_compatible=devices.npu_compatible(host),
        cpu=processor(host, blocks, allowed),
        memory_total=total,
        memory_limit=limited.memory if limited.memory is not None and not 0 < total <= limited.memory else None,
        cpu_quota=limited.quota,
        thermal=_names(host, "/sys/class/thermal/thermal_zone*/type"),
        hwmon=_names(host, "/sys/class/hwmon/hwmon*/name"),
        power=_power(host),
        nodes=devices.nodes(host),
        drivers=devices.drivers(host),
        kernel=_kernel(host),
        governor=",".join(_names(host, "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor")),
        power_mode=_power_mode(host),
        l4t=_l4t(host),
        soc_id=text(host, "/sys/devices/soc0/soc_id", 64),
        soc_family=text(host, "/sys/devices/soc0/family", 64),
    )


def fingerprint(facts: Facts) -> str:
    """SHA-256, in hex, of what decides how fast which way of running a model is.

    The same after a reboot, in another order of PCI, USB and node numbers, after a firmware update and with another
    keyboard; not the same with another chip, another driver of it, other rights on its node, other CPUs or limits.
    Kernel, governor and power mode belong to the key of a measurement too, but they stand beside this.
    """
    cards = [item for item in facts.pci if item.class_[:2] not in _ORDINARY_PCI or item.class_[:4] == _ACCELERATOR_PCI]
    sticks = [item for item in facts.usb if not item.interfaces or not set(item.interfaces) <= _ORDINARY_USB]
    parts = {
        "architecture": facts.architecture,
        "compatible": facts.compatible,
        "model": facts.model,
        "dmi": {key: value for key, value in sorted(facts.dmi.items()) if key != "bios_version"},
        "soc": [facts.soc_id, facts.soc_family],
        "pci": sorted([item.id, item.revision, item.class_, item.driver] for item in cards),
        "usb": sorted([_USB_AFTER_FIRMWARE.get(item.id, item.id)] for item in sticks),
        "npu": facts.npu_compatible,
        "nodes": sorted([re.sub("[0-9]+", "N", node.path), node.driver, str(node.openable)] for node in facts.nodes),
        "cpu": facts.cpu,
        # The kernel reserves some megabytes more or less from boot to boot.
        "memory": -(-facts.memory_total // _MEMORY_STEP),
        "limits": [facts.memory_limit, facts.cpu_quota],
    }
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _affinity(host: Host) -> set[int] | None:
    for line in lines(host, "/proc/self/status", 65_536):
        key, _, value = line.partition(":")
        if key == "Cpus_allowed_list":
            return set(cpus(value)) or None
    return None


def _memory_total(host: Host) -> int:
    for line in lines(host, "/proc/meminfo", 65_536):
        match = re.match(r"MemTotal:\s+([0-9]{1,15}) kB", line)
        if match:
            return int(match[1]) * 1024
    return 0


def _dmi(host: Host) -> dict[str, str]:
    found = {key: text(host, f"/sys/class/dmi/id/{key}", 128) for key in _DMI}
    return {key: value for key, value in found.items() if not _DMI_PLACEHOLDERS.fullmatch(value)}


def _names(host: Host, pattern: str) -> list[str]:
    return sorted({text(host, path, 64) for path in host.glob(pattern)[:1024]} - {""})


def _power(host: Host) -> str:
    kinds = {}
    for path in host.glob("/sys/class/power_supply/*/type")[:64]:
        supply = path.removesuffix("/type")
        if text(host, f"{supply}/scope") != "Device":  # the battery of a mouse
            kinds[supply] = text(host, path)
    outlets = [supply for supply, kind in kinds.items() if kind in ("Mains", "USB", "Wireless")]
    batteries = [supply for supply, kind in kinds.items() if kind == "Battery"]
    if any(number(host, f"{supply}/online") for supply in outlets):
        return "ac"
    if any(text(host, f"{supply}/status") == "Discharging" for supply in batteries):
        return "battery"
    return "ac" if batteries else ""


def _kernel(host: Host) -> str:
    release = text(host, "/proc/sys/kernel/osrelease", 128)
    if release:
        return release
    match = re.match(r"Linux version (\S{1,128})", text(host, "/proc/version"))
    return match[1] if match else ""


def _power_mode(host: Host) -> str:
    match = re.search(r"pmode:([0-9]{1,8})", text(host, "/var/lib/nvpmodel/status"))
    if match:
        return f"nvpmodel:{int(match[1])}"
    profile = text(host, "/sys/firmware/acpi/platform_profile", 64)
    return f"platform:{profile}" if profile else ""


def _l4t(host: Host) -> str:
    release = re.match(r"# R([0-9]{1,4}) \(release\), REVISION: ([0-9.]{1,16}),", text(host, "/etc/nv_tegra_release"))
    if release:
        return f"{release[1]}.{release[2]}"
    kernel = re.search(r"l4t-r([0-9]{1,4}\.[0-9.]{1,16}[0-9])", text(host, "/proc/version"))
    return kernel[1] if kernel else ""
