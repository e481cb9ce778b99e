"""The facts of machines: a table of boards, and what holds for every part of every tree."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.hardware.facts import Facts, PciDevice, fingerprint, gather
from edged.hardware.host import TreeHost

FIXTURES = Path(__file__).parents[2] / "fixtures" / "hardware"
TREES = {path.stem: path.read_text() for path in sorted(FIXTURES.glob("*.tree"))}
HEX = set("0123456789abcdef")


def clusters(facts: Facts) -> list[list[int]]:
    return [cluster.cpus for cluster in facts.cpu.clusters]


def compact(facts: Facts) -> dict[str, Any]:
    """What a row of the tables below compares."""
    return {
        "architecture": facts.architecture,
        "compatible": facts.compatible,
        "clusters": clusters(facts),
        "pci": sorted({item.id for item in facts.pci}),
        "nodes": {node.path: node.driver for node in facts.nodes},
    }


def row(architecture: str, *names: str, clusters: Any, pci: str = "", nodes: Any = None) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "compatible": list(names),
        "clusters": [list(cluster) for cluster in clusters],
        "pci": pci.split(),
        "nodes": nodes or {},
    }


GB10 = ([*range(5, 10), *range(15, 20)], [*range(5), *range(10, 15)])
RK3588_NODES = {"/dev/dri/card0": "", "/dev/dri/card1": "RKNPU", "/dev/dri/renderD128": ""}
OWN = {
    "coral-usb": row("x86_64", clusters=[range(4)]),
    "core-ultra": row(
        "x86_64",
        clusters=[range(4), range(4, 8)],
        pci="8086:641d 8086:643e 8086:647d 8086:64a0 8086:a840",
        nodes={"/dev/dri/renderD128": "xe", "/dev/accel/accel0": "intel_vpu"},
    ),
    "dgx-spark": row("aarch64", clusters=GB10),
    "imx8mp": row("aarch64", "fsl,imx8mp-evk", "fsl,imx8mp", clusters=[range(4)], nodes={"/dev/galcore": ""}),
    "jetson-orin-nano": row(
        "aarch64",
        *("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
        clusters=[range(6)],
        pci="10de:229c 10de:229e",
        nodes={"/dev/nvhost-ctrl-gpu": "", "/dev/nvmap": ""},
    ),
    "qcs6490": row(
        "aarch64",
        *("thundercomm,rubikpi3", "qcom,qcm6490"),
        clusters=[[7], [4, 5, 6], range(4)],
        nodes={"/dev/fastrpc-cdsp": "", "/dev/fastrpc-cdsp-secure": ""},
    ),
    "rk3588-bsp": row(
        "aarch64",
        *("rockchip,rk3588-orangepi-5-max", "rockchip,rk3588"),
        clusters=[range(4, 8), range(4)],
        nodes={**RK3588_NODES, "/dev/dri/renderD129": "RKNPU"},
    ),
    "rk3588-mainline": row(
        "aarch64",
        *("xunlong,orangepi-5-max", "rockchip,rk3588"),
        clusters=[range(4, 8), range(4)],
        nodes={"/dev/accel/accel0": "rocket"},
    ),
    "rpi5-hailo8": row(
        "aarch64",
        *("raspberrypi,5-model-b", "brcm,bcm2712"),
        clusters=[range(4)],
        pci="14e4:2712 1de4:0001 1e60:2864",
        nodes={"/dev/hailo0": ""},
    ),
    "ryzen-ai": row(
        "",
        clusters=[range(16)],
        pci="1002:1114 1022:164a 1022:17f0 15b7:5049",
        nodes={"/dev/accel/accel0": "amdxdna"},
    ),
    "visionfive2": row("riscv64", "starfive,visionfive-2-v1.3b", "starfive,jh7110", clusters=[range(4)]),
    "x86-vm": row("x86_64", clusters=[range(4)], pci="1234:1111 1af4:1041"),
}
RECORDED = {
    "core-ultra-7-258v": row(
        "x86_64",
        clusters=[range(8)],
        pci="144d:a80a 8086:6400 8086:641d 8086:643e 8086:647d 8086:64a0 8086:a840 8086:a87d",
        nodes={"/dev/dri/renderD128": "", "/dev/accel/accel0": "intel_vpu"},
    ),
    "dgx-spark-gb10": row("aarch64", clusters=GB10),
    "hp-elitebook-8-g1a-ryzen-ai": row(
        "",
        clusters=[range(16)],
        pci="1002:1114 1002:1640 1022:1116 1022:1122 1022:164a 1022:17e0 1022:17f0 14c3:7925 15b7:5049",
        nodes={"/dev/accel/accel0": "amdxdna"},
    ),
    "imx8mp-evk": row("aarch64", "fsl,imx8mp-evk", "fsl,imx8mp", clusters=[range(4)]),
    "intel-i7-1370p-hybrid": row("x86_64", clusters=[range(12), range(12, 20)]),
    "jetson-orin-nano-l4t36": row(
        "aarch64",
        *("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"),
        clusters=[range(6)],
        pci="10de:229c 10de:229e 10ec:8168 10ec:c822",
    ),
    "rk3588-bsp61-orangepi5max": row(
        "aarch64",
        *("rockchip,rk3588-orangepi-5-max", "rockchip,rk3588"),
        clusters=[range(4, 8), range(4)],
        nodes={**RK3588_NODES, "/dev/dri/renderD129": ""},
    ),
    "rpi5-hailo8": OWN["rpi5-hailo8"],
    "rubikpi3-qcs6490": row("aarch64", "qcom,qcm6490-addons-idp", "qcom,sc7280", clusters=[[7], [4, 5, 6], range(4)]),
    "sm8550-class-x3-a715-a710-a510": row("aarch64", clusters=[[7], range(3, 7), range(3)]),
    "visionfive2-jh7110": row("riscv64", clusters=[range(4)]),
}


def tree(name: str, *more: str) -> TreeHost:
    return TreeHost("\n".join([TREES[name], *more]))


@pytest.fixture(scope="module")
def recorded(real_data: Path) -> dict[str, str]:
    folder = real_data / ".." / "hardware" / "dumps" / "trees"
    if not folder.is_dir():
        pytest.skip("no recorded trees beside the real data")
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.tree"))}


def test_each_fixture_has_its_row_and_names_its_sources() -> None:
    assert OWN.keys() == TREES.keys()
    for name, text in TREES.items():
        assert "# source: " in text, name


@pytest.mark.parametrize("name", OWN)
def test_the_facts_of_our_own_trees(name: str) -> None:
    assert compact(gather(tree(name))) == OWN[name]


@pytest.mark.real_data
@pytest.mark.parametrize("name", RECORDED)
def test_the_facts_of_the_recorded_trees(name: str, recorded: dict[str, str]) -> None:
    assert compact(gather(TreeHost(recorded[name]))) == RECORDED[name]


@pytest.mark.real_data
def test_traps_of_the_recorded_trees(recorded: dict[str, str]) -> None:
    assert recorded.keys() == RECORDED.keys()
    facts = {name: gather(TreeHost(text)) for name, text in recorded.items()}
    assert [cluster.cores for cluster in facts["intel-i7-1370p-hybrid"].cpu.clusters] == [6, 8], "6 P-cores, 12 threads"
    assert "avx_vnni" in facts["core-ultra-7-258v"].cpu.flags
    assert "avx512f" not in facts["core-ultra-7-258v"].cpu.flags
    assert {"i8mm", "sve2"} <= set(facts["dgx-spark-gb10"].cpu.flags)
    assert "asimddp" not in facts["imx8mp-evk"].cpu.flags
    assert "v" not in facts["visionfive2-jh7110"].cpu.flags
    assert facts["sm8550-class-x3-a715-a710-a510"].cpu.clusters[1].types == ["0x41:0xd47", "0x41:0xd4d"]
    assert facts["jetson-orin-nano-l4t36"].l4t == "36.4.4"
    assert facts["dgx-spark-gb10"].memory_total == 125508468 * 1024
    assert len({fingerprint(item) for item in facts.values()}) == len(facts)


def test_flags_are_those_of_every_cpu() -> None:
    info = "processor : 0\\nflags : lm avx2 avx512f\\n\\nprocessor : 1\\nflags : lm avx2\\n"
    facts = gather(TreeHost(f'f\t/proc/cpuinfo\t"{info}"'))
    assert facts.cpu.flags == ["avx2", "lm"]
    assert gather(tree("visionfive2")).cpu.flags[:4] == ["a", "c", "d", "f"]
    assert "asimddp" in gather(tree("rk3588-bsp")).cpu.flags


def test_equal_capacities_yield_to_frequencies_and_types() -> None:
    equal = (f'f\t/sys/devices/system/cpu/cpu{cpu}/cpu_capacity\t"1024\\n"' for cpu in range(8))
    assert clusters(gather(tree("rk3588-bsp", *equal))) == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_small_cores_are_not_first_even_if_they_run_faster() -> None:
    top = "/sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq"
    text = TREES["rk3588-bsp"].replace(f'{top}\t"1800000', f'{top}\t"2600000')
    assert clusters(gather(TreeHost(text))) == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_what_this_process_may_use_is_less_than_what_is_there() -> None:
    facts = gather(tree("x86-vm"))
    assert (facts.cpu.count, facts.cpu.allowed, facts.cpu_quota) == (4, [0, 1, 2], 1.5)
    assert (facts.memory_limit, facts.memory) == (2**31, 2**31)
    assert gather(tree("x86-vm"), allowed_cpus=[2, 3]).cpu.allowed == [2], "the argument and the group's CPUs"
    old = gather(tree("coral-usb"))
    assert (old.memory, old.cpu_quota) == (2**30, 2.0), "version 1; the container's own path is not visible inside it"
    assert gather(tree("rk3588-bsp"), allowed_cpus={4, 5, 900}).cpu.allowed == [4, 5]
    assert gather(tree("rk3588-bsp"), allowed_cpus={900}).cpu.allowed == list(range(8)), "a wrong mask is no mask"


def test_a_group_path_that_leaves_the_tree_is_not_followed() -> None:
    facts = gather(
        TreeHost(
            'f\t/proc/self/cgroup\t"0::/../../etc\\n"\nf\t/etc/memory.max\t"5\\n"\nf\t/sys/fs/cgroup/memory.max\t"7"'
        )
    )
    assert facts.memory_limit == 7


def test_devices_beside_the_cpu() -> None:
    ryzen = gather(tree("ryzen-ai"))
    npu = PciDevice(vendor="1022", device="17f0", revision="20", class_="118000", driver="amdxdna")
    assert npu in ryzen.pci
    coral = gather(tree("coral-usb"))
    assert [(item.id, item.interfaces) for item in coral.usb] == [
        ("046d:c31c", ["03"]),
        ("05e3:0608", ["09"]),
        ("18d1:9302", ["ff"]),
    ], "no root hub"
    rockchip = gather(tree("rk3588-mainline"))
    assert rockchip.npu_compatible == ["rockchip,rk3588-rknn-core"], "the disabled GPU is left out"
    assert rockchip.drivers == {"rocket": ""}
    assert gather(tree("rk3588-bsp")).drivers == {"rknpu": "0.9.6"}
    nodes = {node.path: node for node in gather(tree("rk3588-bsp")).nodes}
    assert nodes["/dev/dri/renderD129"].aliases == ["/dev/dri/by-path/platform-fdab0000.npu-render"]


def test_a_node_is_openable_for_its_group_only() -> None:
    for groups, openable in (((), False), (("video",), False), (("render",), True)):
        (node,) = gather(TreeHost(TREES["rk3588-mainline"], groups=groups)).nodes
        assert (node.openable, node.group, node.mode) == (openable, "render", 0o660)
    (hailo,) = gather(tree("rpi5-hailo8")).nodes
    assert hailo.openable


def test_power_and_modes() -> None:
    laptop = gather(tree("core-ultra"))
    assert (laptop.power, laptop.power_mode, laptop.governor) == ("battery", "platform:balanced", "powersave")
    plugged = TREES["core-ultra"].replace('AC/online\t"0', 'AC/online\t"1')
    assert gather(TreeHost(plugged)).power == "ac"
    assert gather(tree("coral-usb")).power == "", "the battery is a controller's"
    orin = gather(tree("jetson-orin-nano"))
    assert (orin.power_mode, orin.l4t, orin.soc_id) == ("nvpmodel:2", "36.4.4", "jep106:036b:0234")
    assert "cv0-thermal" in orin.thermal, "a gated zone is a zone"
    assert gather(tree("dgx-spark")).kernel == "6.17.0-1014-nvidia"


def test_placeholders_of_the_dmi_are_left_out() -> None:
    assert "product_version" not in gather(tree("core-ultra")).dmi
    assert gather(tree("coral-usb")).dmi == {}


def test_the_fingerprint_is_the_same_after_another_enumeration() -> None:
    for name, text in TREES.items():
        lines = text.splitlines()
        random.Random(name).shuffle(lines)
        other = "\n".join(lines).replace("0000:c4:00.1", "0000:c7:00.1").replace("0001:01:00.0", "0000:01:00.0")
        other = other.replace("/usb/devices/2-1", "/usb/devices/3-2").replace("2-1:1.0", "3-2:1.0")
        assert fingerprint(gather(TreeHost(other))) == fingerprint(gather(TreeHost(text))), name


def test_the_fingerprint_ignores_what_does_not_decide() -> None:
    before = fingerprint(gather(tree("rk3588-bsp")))
    changed = TREES["rk3588-bsp"].replace("MemTotal:       16200000", "MemTotal:       16199364")
    changed = changed.replace("0123456789abcdef", "fedcba9876543210").replace("renderD129", "renderD130")
    changed = changed.replace("6.1.43-rockchip", "6.1.75-rockchip").replace("ondemand", "performance")
    assert fingerprint(gather(TreeHost(changed))) == before
    keyboard = TREES["coral-usb"].replace("046d", "04d9").replace("18d1", "1a6e").replace('"9302', '"089a')
    assert fingerprint(gather(TreeHost(keyboard))) == fingerprint(gather(tree("coral-usb"))), "firmware not loaded yet"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ryzen-ai", '"0x20\\n"', '"0x11\\n"'),
        ("ryzen-ai", "drivers/amdxdna", "drivers/vfio-pci"),
        ("core-ultra", "0660 root:render 261:0", "0666 root:render 261:0"),
        ("coral-usb", '"9302', '"4321'),
        ("x86-vm", "150000 100000", "200000 100000"),
        ("x86-vm", '"0-2\\n"', '"0-1\\n"'),
        ("visionfive2", "starfive,jh7110", "starfive,jh7110s"),
    ],
)
def test_the_fingerprint_changes_with_what_decides(name: str, old: str, new: str) -> None:
    assert old in TREES[name]
    changed = TreeHost(TREES[name].replace(old, new))
    assert fingerprint(gather(changed)) != fingerprint(gather(tree(name)))


def parts() -> Iterator[str]:
    for text in TREES.values():
        yield from (line for line in text.splitlines() if not line.startswith("#"))


PARTS = list(parts())
PATHS = sorted({line.split("\t")[1] for line in PARTS})
GARBAGE = st.builds(
    lambda kind, path, value: f"{kind}\t{path}\t{msgspec.json.encode(value).decode()}",
    st.sampled_from("flce"),
    st.sampled_from(PATHS),
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=40),
        st.sampled_from(
            ["-1", "0x", "9" * 30, "0-99999", "max", "/", "..", "EAGAIN", "E", "0660 a:b 1:2", "\0\0", "a:b"]
        ),
    ),
)


def check(facts: Facts) -> None:
    """What every user of the facts may rely on."""
    assert facts.cpu.count >= 1 and facts.cpu.allowed
    assert facts.cpu.allowed == sorted(set(facts.cpu.allowed))
    members = [cpu for cluster in facts.cpu.clusters for cpu in cluster.cpus]
    assert len(members) == len(set(members)) == facts.cpu.count
    assert set(facts.cpu.allowed) <= set(members)
    assert all(1 <= cluster.cores <= len(cluster.cpus) for cluster in facts.cpu.clusters)
    assert all(len(item.id) == 9 and set(item.id) <= HEX | {":"} for item in [*facts.pci, *facts.usb])
    assert facts.memory_total >= 0 and (facts.memory_limit is None or facts.memory_limit > 0)
    assert facts.cpu_quota is None or facts.cpu_quota >= 0
    assert len(fingerprint(facts)) == 64
    assert msgspec.json.decode(msgspec.json.encode(facts), type=Facts) == facts


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(TREES)), seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_any_part_of_a_tree_in_any_order_gives_valid_facts(name: str, seed: int, share: float) -> None:
    rng = random.Random(seed)
    lines = [line for line in TREES[name].splitlines() if rng.random() < share]
    in_order = gather(TreeHost("\n".join(lines)))
    check(in_order)
    rng.shuffle(lines)
    assert gather(TreeHost("\n".join(lines))) == in_order


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PARTS), GARBAGE, st.text(max_size=60)), max_size=60))
def test_no_garbage_stops_the_gathering(lines: list[str]) -> None:
    check(gather(TreeHost("\n".join(lines))))


@pytest.mark.real_data
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_part_of_a_recorded_tree_gives_valid_facts(recorded: dict[str, str], data: st.DataObject) -> None:
    lines = recorded[data.draw(st.sampled_from(sorted(RECORDED)))].splitlines()
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    share = rng.random()
    check(gather(TreeHost("\n".join(line for line in lines if rng.random() < share))))
