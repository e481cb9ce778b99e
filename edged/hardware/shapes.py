"""The shape of the facts about a machine."""

from __future__ import annotations

import msgspec


class PciDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A PCI function without its slot.

    Lower-case hex without `0x`: `vendor` and `device` of 4 digits, `revision` of 2, `class_` of 6 (base class,
    subclass, interface). `driver` is the bound kernel driver. "" where unknown.
    """

    vendor: str
    device: str
    revision: str = ""
    class_: str = ""
    driver: str = ""

    @property
    def id(self) -> str:
        """`vendor:device`, as profiles write it."""
        return f"{self.vendor}:{self.device}"


class UsbDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A USB device without its port. `interfaces` are the distinct interface classes, 2 hex digits each."""

    vendor: str
    product: str
    interfaces: list[str] = []
    speed_mbps: float | None = None

    @property
    def id(self) -> str:
        """`vendor:product`, as profiles write it."""
        return f"{self.vendor}:{self.product}"


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """CPUs of about the same speed. `cores` counts physical cores; `types`: MIDR "0x41:0xd0b", or "core" and "atom".

    `capacity` is the kernel's relative speed (the fastest CPU of a machine has 1024), `max_khz` the highest frequency:
    both of the fastest CPU in the cluster, None where unknown.
    """

    cpus: list[int]
    cores: int
    capacity: int | None = None
    max_khz: int | None = None
    types: list[str] = []


class CpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The processor. `count` CPUs are online, `allowed` are those this process may use, `flags` what all CPUs can do.

    `flags`: x86 `flags`, ARM `Features`, RISC-V `isa` split into extensions. `clusters`: fastest first, of all online
    CPUs. Where nothing can be read there is one CPU, number 0.
    """

    count: int = 1
    allowed: list[int] = msgspec.field(default_factory=lambda: [0])
    flags: list[str] = []
    clusters: list[Cluster] = []
    name: str = ""


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node under /dev that an accelerator may use. `aliases`: its /dev/dri/by-path names that contain no PCI slot."""

    path: str
    mode: int
    group: str
    openable: bool
    driver: str = ""
    aliases: list[str] = []


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is here. Nothing in it names this one specimen: no serial, address, slot or host name.

    Attributes:
        architecture: as `uname -m` says it ("x86_64", "aarch64", "riscv64"), "" if unknown.
        compatible: of the device tree, most specific first.
        model: of the device tree.
        dmi: sys_vendor, product_name, product_family, product_version, board_vendor, board_name; placeholders left out.
        pci, usb: sorted, see there.
        npu_compatible: `compatible` strings of enabled device-tree nodes called npu, tpu, gpu, ethosu or nvdla, sorted.
        memory_total: bytes of RAM the kernel has.
        memory_limit: bytes the control groups allow, None without a limit below `memory_total`.
        cpu_quota: CPUs' worth of time that the control groups allow, None without a limit.
        thermal: types of the thermal zones, sorted. hwmon: names of the sensor chips, sorted.
        power: "ac", "battery" or "" (unknown, or no battery at all).
        nodes: see `DeviceNode`.
        drivers: versions of loaded accelerator drivers that state one; "" for a loaded driver without a version.
        kernel: release. governor: cpufreq governors in use, joined by ",".
        power_mode: "nvpmodel:2" or "platform:balanced", "" if the machine has none.
        l4t: NVIDIA's Linux for Tegra release, "36.4.3". soc_id, soc_family: of the SoC bus.
    """

    architecture: str = ""
    compatible: list[str] = []
    model: str = ""
    dmi: dict[str, str] = {}
    pci: list[PciDevice] = []
    usb: list[UsbDevice] = []
    npu_compatible: list[str] = []
    cpu: CpuFacts = msgspec.field(default_factory=CpuFacts)
    memory_total: int = 0
    memory_limit: int | None = None
    cpu_quota: float | None = None
    thermal: list[str] = []
    hwmon: list[str] = []
    power: str = ""
    nodes: list[DeviceNode] = []
    drivers: dict[str, str] = {}
    kernel: str = ""
    governor: str = ""
    power_mode: str = ""
    l4t: str = ""
    soc_id: str = ""
    soc_family: str = ""

    @property
    def memory(self) -> int:
        """Bytes that may be used: the smaller of total and limit."""
        return self.memory_total if self.memory_limit is None else min(self.memory_total, self.memory_limit)
