"""Which profiles fit: every fixture and recorded machine, the order within a layer, and any subset of the facts."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.hardware.candidates import CPU_FLOOR, Candidate, propose
from edged.hardware.facts import Facts, gather
from edged.hardware.host import TreeHost
from edged.hardware.matching import match
from edged.hardware.profiles import Block, Profile, Thermal, load_profiles, parse_profile
from edged.hardware.shapes import CpuFacts, PciDevice

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests" / "fixtures" / "hardware"

EXPECTED: dict[str, list[str]] = {
    # SoC, accelerators, CPU, board
    "rk3588-bsp": ["soc/rk3588", "cpu/arm-dotprod", "board/orange-pi-5"],
    "rk3588-mainline": ["soc/rk3588", "cpu/arm-dotprod", "board/orange-pi-5"],
    "jetson-orin-nano": ["soc/tegra234", "cpu/arm-dotprod", "board/jetson-orin-nano"],
    "rpi5-hailo8": ["soc/bcm2712", "accel/hailo8", "cpu/arm-dotprod", "board/raspberry-pi-5"],
    "core-ultra": ["accel/intel-gpu", "accel/intel-npu", "cpu/x86-avx-vnni"],
    "ryzen-ai": ["accel/amd-gpu", "accel/amd-npu"],
    "imx8mp": ["soc/imx8mp", "cpu/arm-neon"],
    "qcs6490": ["soc/qcs6490", "cpu/arm-dotprod", "board/rubik-pi-3"],
    "dgx-spark": ["cpu/arm-sve2", "board/dgx-spark"],
    "visionfive2": [],
}
RECORDED: dict[str, list[str]] = {
    "rk3588-bsp61-orangepi5max": EXPECTED["rk3588-bsp"],
    "jetson-orin-nano-l4t36": EXPECTED["jetson-orin-nano"],
    "rpi5-hailo8": EXPECTED["rpi5-hailo8"],
    "core-ultra-7-258v": EXPECTED["core-ultra"],
    "hp-elitebook-8-g1a-ryzen-ai": EXPECTED["ryzen-ai"],
    "imx8mp-evk": EXPECTED["imx8mp"],
    "rubikpi3-qcs6490": EXPECTED["qcs6490"],
    "dgx-spark-gb10": EXPECTED["dgx-spark"],
    "intel-i7-1370p-hybrid": ["cpu/x86-avx-vnni"],
    "sm8550-class-x3-a715-a710-a510": ["cpu/arm-i8mm"],
    "visionfive2-jh7110": [],
}


@cache
def shipped() -> tuple[Profile, ...]:
    return tuple(load_profiles([ROOT / "firmware_profiles"]))


def ids(facts: Facts, profiles: tuple[Profile, ...] | list[Profile] | None = None) -> list[str]:
    return [profile.id for profile in match(facts, shipped() if profiles is None else profiles).profiles]


def profile(id: str, *blocks: Block, **more: object) -> Profile:
    made = Profile(schema=1, id=id, version=1, layer=id.split("/")[0], sources=["test"], match=list(blocks))  # type: ignore[arg-type]
    return msgspec.structs.replace(made, **more)


# --- machines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_fixtures_get_the_expected_profiles(name: str) -> None:
    facts = gather(TreeHost((FIXTURES / f"{name}.tree").read_text()))
    assert ids(facts) == EXPECTED[name]


@pytest.mark.real_data
@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recorded_machines_get_the_expected_profiles(name: str, real_data: Path) -> None:
    facts = gather(TreeHost((real_data.parent / "hardware" / "dumps" / "trees" / f"{name}.tree").read_text()))
    assert ids(facts) == RECORDED[name]


def test_coral_is_found_before_and_after_its_firmware_is_loaded() -> None:
    text = (FIXTURES / "coral-usb.tree").read_text()
    after = gather(TreeHost(text))
    before = gather(TreeHost(text.replace("18d1", "1a6e").replace("9302", "089a")))
    assert "accel/coral-usb" in ids(after)
    assert "accel/coral-usb" in ids(before)


def test_neighbours_of_the_same_pci_class_are_not_taken_for_an_npu() -> None:
    neighbours = [
        PciDevice(vendor="1022", device="164a", class_="118000"),
        PciDevice(vendor="8086", device="641d", class_="118000"),
        PciDevice(vendor="8086", device="647d", class_="118000"),
        PciDevice(vendor="8086", device="464f", class_="088000"),
        PciDevice(vendor="10de", device="229a", class_="060400"),  # a Jetson's PCIe root
        PciDevice(vendor="8086", device="7e4c", class_="088000"),
    ]
    assert ids(Facts(pci=neighbours)) == []


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2", "cpu/x86-avx2"),
        ("avx2 avx_vnni", "cpu/x86-avx-vnni"),
        ("avx2 avx512f", "cpu/x86-avx512"),
        ("avx2 avx512f avx512_vnni avx_vnni", "cpu/x86-avx512-vnni"),
        ("avx2 avx512f avx512_vnni avx_vnni amx_tile amx_int8", "cpu/x86-amx"),
        ("sse4_2", None),
    ],
)
def test_x86_classes(flags: str, expected: str | None) -> None:
    cpu = match(Facts(architecture="x86_64", cpu=CpuFacts(flags=flags.split())), shipped()).cpu
    assert (cpu.id if cpu else None) == expected


def test_flags_of_another_architecture_do_not_count() -> None:
    assert ids(Facts(architecture="riscv64", cpu=CpuFacts(flags=["avx2", "asimd"]))) == []


# --- order and layers -----------------------------------------------------------------------------------------------


def test_the_earlier_compatible_entry_wins_and_exact_beats_a_glob() -> None:
    board = Facts(compatible=["maker,board", "maker,chip-plus", "maker,chip"])
    late = profile("soc/late", Block(compatible=["maker,chip"]))
    early = profile("soc/early", Block(compatible=["maker,chip-plus"]))
    wild = profile("soc/a-wild", Block(compatible=["maker,chip-*"]))
    assert ids(board, [late, early, wild]) == ["soc/early"]
    assert ids(board, [late, wild]) == ["soc/a-wild"]
    matched = match(board, [late, early, wild])
    assert matched.explanations == [
        'soc/early: compatible "maker,chip-plus" is entry 2 of 3; soc/a-wild, soc/late would fit too, less precisely'
    ]


def test_model_and_dmi_only_break_ties() -> None:
    facts = Facts(compatible=["maker,board", "maker,chip"], model="Maker Board Plus")
    named = profile("soc/named", Block(compatible=["maker,chip"], model=["*Plus*"]))
    plain = profile("soc/a-plain", Block(compatible=["maker,chip"]))
    earlier = profile("soc/earlier", Block(compatible=["maker,board"]))
    assert ids(facts, [plain, named]) == ["soc/named"]
    assert ids(facts, [plain, named, earlier]) == ["soc/earlier"]
    assert ids(Facts(compatible=["maker,chip"], model="Other"), [plain, named]) == ["soc/a-plain"]


def test_class_and_revision_must_be_those_of_the_same_device() -> None:
    wanted = profile("accel/x", Block(pci=["1234:*"], pci_class=["0300??"], pci_revision=["02"]))
    split = [
        PciDevice(vendor="1234", device="0001", class_="030000", revision="01"),
        PciDevice(vendor="1234", device="0002", class_="020000", revision="02"),
    ]
    assert ids(Facts(pci=split), [wanted]) == []
    whole = PciDevice(vendor="1234", device="0003", class_="030000", revision="02")
    assert ids(Facts(pci=[*split, whole]), [wanted]) == ["accel/x"]


def test_the_order_of_the_profiles_and_devices_does_not_matter() -> None:
    facts = gather(TreeHost((FIXTURES / "core-ultra.tree").read_text()))
    shuffled = list(shipped())
    random.Random(7).shuffle(shuffled)
    turned = msgspec.structs.replace(facts, pci=facts.pci[::-1])
    assert match(turned, shuffled) == match(facts, shipped())


SITE = b"""
schema = 1
id = "site/line-3"
version = 2
layer = "site"
disable = ["soc/rk3588#rknn", "cpu/arm-dotprod"]
[thermal]
soft_c = 60
[[candidate]]
id = "litert"
runtime = "litert"
artefact = { format = "tflite" }
precision = ["int8"]
prior = 99
"""


def test_the_site_goes_last_and_wins_but_cannot_take_the_floor_away() -> None:
    facts = gather(TreeHost((FIXTURES / "rk3588-bsp.tree").read_text()))
    matched = match(facts, [*shipped(), parse_profile(SITE, "site.toml")])
    assert matched.refs[-1] == "site/line-3@2"
    assert matched.thermal.soft_c == 60
    assert matched.thermal.hard_c == 95
    assert matched.thermal.zones["npu"] == ["npu-thermal"]
    proposed = {candidate.id: candidate for candidate in propose(matched)}
    assert proposed["soc/rk3588#rknn"].disabled_by == "site/line-3"
    assert proposed["soc/rk3588#teflon"].disabled_by == ""
    assert proposed["cpu/arm-dotprod#onnxruntime"].disabled_by == "site/line-3"
    assert next(iter(proposed)) == "site/line-3#litert"
    assert list(proposed)[-2:] == [floor.id for floor in CPU_FLOOR]


def test_the_board_narrows_the_soc() -> None:
    facts = gather(TreeHost((FIXTURES / "rk3588-bsp.tree").read_text()))
    board = profile(
        "board/mine",
        Block(compatible=["rockchip,rk3588-orangepi-5-max"], model=["*"]),
        thermal=Thermal(hard_c=90),
        disable=["soc/rk3588"],
    )
    matched = match(facts, [*shipped(), board])
    assert matched.board == board
    assert (matched.thermal.soft_c, matched.thermal.hard_c) == (80, 90)
    assert {c.disabled_by for c in propose(matched) if c.id.startswith("soc/")} == {"board/mine"}


def test_nothing_matches_is_an_answer() -> None:
    matched = match(Facts(), shipped())
    assert matched.profiles == []
    assert matched.explanations == ["no profile matches this machine; models run on the CPU"]
    assert propose(matched) == list(CPU_FLOOR)


def test_the_floor_is_not_said_twice() -> None:
    facts = gather(TreeHost((FIXTURES / "core-ultra.tree").read_text()))
    roads = [c.road for c in propose(match(facts, shipped())) if c.provider == "cpu"]
    assert sorted(roads) == ["litert/cpu", "onnxruntime/cpu"]


def test_candidates_stand_in_the_order_of_their_prior() -> None:
    facts = gather(TreeHost((FIXTURES / "core-ultra.tree").read_text()))
    proposed = propose(match(facts, shipped()))
    assert [c.prior for c in proposed] == sorted((c.prior for c in proposed), reverse=True)
    assert proposed[0].id == "accel/intel-npu#openvino-npu"
    assert all(c.status == "untested" for c in proposed if c.provider != "cpu")


# --- properties -----------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(EXPECTED)), st.randoms(use_true_random=False), st.floats(0, 1))
def test_any_part_of_a_machine_still_gives_a_cpu_to_run_on(name: str, rng: random.Random, share: float) -> None:
    lines = (FIXTURES / f"{name}.tree").read_text().splitlines()
    part = "\n".join(line for line in lines if rng.random() < share)
    matched = match(gather(TreeHost(part)), shipped())
    proposed = propose(matched)
    assert {"onnxruntime/cpu", "litert/cpu"} <= {c.road for c in proposed if not c.disabled_by}
    assert matched.explanations
    assert {p.id for p in matched.profiles} <= {p.id for p in shipped()}
    assert all(isinstance(c, Candidate) for c in proposed)
