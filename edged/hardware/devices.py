"""Facts about what is plugged in or built in beside the CPU: PCI, USB, device nodes, drivers."""

from __future__ import annotations

from edged.hardware.host import Host, Node
from edged.hardware.reading import digits, lines, name_of_link, number, strings, text, tidy
from edged.hardware.shapes import DeviceNode, PciDevice, UsbDevice

_DEVICE_LIMIT = 1024
_ROOT_HUB = "1d6b"
_NODES = (
    "dri/card*",
    "dri/renderD*",
    "accel/accel*",
    "kfd",
    "dxg",
    "nvidia[0-9]*",
    "nvidiactl",
    "nvidia-uvm",
    "nvhost-*",
    "nvmap",
    "nvgpu/*/ctrl",
    "rknpu",
    "galcore",
    "vipcore",
    "ethosu*",
    "neutron*",
    "apusys*",
    "drpai*",
    "cvi-tpu*",
    "rpmsg_ctrl*",
    "fastrpc-*",
    "apex_*",
    "hailo*",
    "memx*",
    "metis*",
    "bm-*",
    "bmdev-ctl",
    "cambricon_*",
    "davinci*",
    "devmm_svm",
    "hisi_hdc",
    "svm0",
)
_DRIVERS = (
    "amdgpu",
    "i915",
    "xe",
    "nvidia",
    "nvgpu",
    "amdxdna",
    "intel_vpu",
    "qaic",
    "habanalabs",
    "rknpu",
    "rocket",
    "ethosu",
    "galcore",
    "etnaviv",
    "vipcore",
    "fastrpc",
    "apex",
    "gasket",
    "hailo_pci",
    "hailo1x_pci",
    "memx_cascade_plus_pcie",
    "metis",
    "bmsophon",
    "cambricon_drv",
    "drv_davinci_intf",
)
_TREE_NAMES = ("npu", "tpu", "gpu", "ethosu", "nvdla*")
_PEOPLE = 1000
"""Group numbers from here on belong to people, except those of vendors' packages."""
_VENDOR_GROUPS = frozenset({"HwHiAiUser", "apex", "axelera", "plugdev", "render", "video"})


def pci(host: Host) -> list[PciDevice]:
    """All PCI functions, sorted, so that the order of enumeration does not show."""
    found = []
    for path in host.glob("/sys/bus/pci/devices/*")[:_DEVICE_LIMIT]:
        vendor, device = digits(host, f"{path}/vendor", 4), digits(host, f"{path}/device", 4)
        if vendor and device:
            found.append(
                PciDevice(
                    vendor=vendor,
                    device=device,
                    revision=digits(host, f"{path}/revision", 2),
                    class_=digits(host, f"{path}/class", 6),
                    driver=_driver(host, path),
                )
            )
    return sorted(found, key=lambda item: (item.vendor, item.device, item.revision, item.class_, item.driver))


def usb(host: Host) -> list[UsbDevice]:
    """All USB devices but the root hubs, sorted."""
    found = []
    for path in host.glob("/sys/bus/usb/devices/*")[:_DEVICE_LIMIT]:
        vendor, product = digits(host, f"{path}/idVendor", 4), digits(host, f"{path}/idProduct", 4)
        if vendor and product and vendor != _ROOT_HUB:
            classes = {digits(host, name, 2) for name in host.glob(f"{path}/*:*/bInterfaceClass")[:64]}
            speed = number(host, f"{path}/speed")
            found.append(
                UsbDevice(
                    vendor=vendor,
                    product=product,
                    interfaces=sorted(classes - {""}),
                    speed_mbps=speed if speed is not None and speed > 0 else None,
                )
            )
    return sorted(found, key=lambda item: (item.vendor, item.product, item.interfaces, item.speed_mbps or 0))


def nodes(host: Host) -> list[DeviceNode]:
    """The device nodes that accelerators use."""
    aliases = _aliases(host)
    found = []
    for pattern in _NODES:
        for path in host.glob(f"/dev/{pattern}")[:_DEVICE_LIMIT]:
            node = host.node(path)
            if node is None or not path.isprintable():
                continue
            _, _, kind, *rest = path.split("/")
            device = f"/sys/class/{'drm' if kind == 'dri' else kind}/{rest[0]}/device" if rest else ""
            found.append(
                DeviceNode(
                    path=path,
                    mode=node.mode,
                    group=public_group(node),
                    openable=node.openable,
                    driver=_driver(host, device) if device else "",
                    aliases=aliases.get(path, []),
                )
            )
    return found


def public_group(node: Node) -> str:
    """The group's name, "other" for one that may be a person's."""
    private = node.gid >= _PEOPLE and node.group not in _VENDOR_GROUPS
    return "other" if private else tidy(node.group)[:64]


def drivers(host: Host) -> dict[str, str]:
    """Loaded accelerator drivers and their versions, "" for one without."""
    loaded = [name for name in _DRIVERS if host.glob(f"/sys/module/{name}")]
    return {name: text(host, f"/sys/module/{name}/version", 64) for name in loaded}


def npu_compatible(host: Host) -> list[str]:
    """`compatible` of the accelerators that the device tree names and does not disable."""
    found: set[str] = set()
    for depth in ("", "*/", "*/*/"):
        for name in _TREE_NAMES:
            for path in host.glob(f"/proc/device-tree/{depth}{name}@*/compatible")[:64]:
                status = text(host, path.removesuffix("compatible") + "status")
                if status in ("", "ok", "okay"):
                    found.update(strings(host, path)[:8])
    return sorted(found - {""})


def _aliases(host: Host) -> dict[str, list[str]]:
    """/dev/dri/cardN -> its names below by-path, only those with the address of a part of the SoC, not a PCI slot."""
    found: dict[str, list[str]] = {}
    for path in host.glob("/dev/dri/by-path/platform-*")[:64]:
        target = (host.link(path) or "").rpartition("/")[2]
        if "-pci-" not in path and target and path.isprintable():
            found.setdefault(f"/dev/dri/{target}", []).append(path)
    return found


def _driver(host: Host, device: str) -> str:
    bound = name_of_link(host, f"{device}/driver")
    if bound:
        return bound
    stated = (line.partition("=") for line in lines(host, f"{device}/uevent", 4096))
    return next((tidy(value)[:64] for key, _, value in stated if key == "DRIVER"), "")
