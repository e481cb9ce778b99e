"""The gate: what may be tried, and for everything else the reason and one sentence about what would change it."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.hardware.candidates import CPU_FLOOR, Candidate, propose
from edged.hardware.facts import gather
from edged.hardware.gate import Accepted, Rejection, gate, gate_all
from edged.hardware.host import TreeHost
from edged.hardware.matching import match
from edged.hardware.profiles import Artefact, Profile, Requires, load_profiles, parse_profile
from edgekit.packages.manifest import InputSpec, Manifest, PackageError, Variant, manifest_text, parse_manifest
from edgekit.runtimes.libraries import ROADS

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests" / "fixtures" / "hardware"
EVERYTHING = {(road.runtime, road.provider) for road in ROADS}
CPU_ONLY = {("onnxruntime", "cpu"), ("litert", "cpu")}

VARIANTS = [
    Variant(file="m.onnx"),
    Variant(file="m8.onnx", precision="int8"),
    Variant(file="m.tflite", runtime="litert", precision="int8"),
    Variant(file="m-tpu.tflite", runtime="litert", precision="int8", target="edgetpu"),
    Variant(file="m.rknn", runtime="rknnlite", precision="int8", target="rk3588"),
    Variant(file="m16.rknn", runtime="rknnlite", precision="fp16", target="rk3588"),
    Variant(file="m.hef", runtime="hailort", precision="int8", target="hailo8"),
]


@cache
def shipped() -> tuple[Profile, ...]:
    return tuple(load_profiles([ROOT / "firmware_profiles"]))


def manifest(*variants: Variant) -> Manifest:
    return Manifest(
        name="solder", version="3", labels="l.txt", input=InputSpec(width=8, height=8), variants=list(variants)
    )


FULL = manifest(*VARIANTS)


def judge(
    tree: str,
    *,
    groups: tuple[str, ...] = (),
    package: Manifest = FULL,
    roads: set[tuple[str, str]] = EVERYTHING,
    profiles: tuple[Profile, ...] | None = None,
    libraries: tuple[str, ...] = (),
) -> dict[str, Accepted | Rejection]:
    """Candidate id -> the gate's answer, for a machine given as text."""
    text = tree + "".join(f"\nf\t/usr/lib/aarch64-linux-gnu/{name}\t{json.dumps('x')}" for name in libraries)
    host = TreeHost(text, groups)
    facts = gather(host)
    candidates = propose(match(facts, shipped() if profiles is None else profiles))
    accepted, rejected = gate_all(candidates, facts, host, package, roads)
    return {one.candidate.id: one for one in accepted} | {one.candidate: one for one in rejected}


def fixture(name: str) -> str:
    return (FIXTURES / f"{name}.tree").read_text()


def without(word: str, tree: str) -> str:
    return "\n".join(line for line in tree.splitlines() if word not in line)


def remedy(answer: Accepted | Rejection) -> str:
    assert isinstance(answer, Rejection), answer
    assert answer.reason
    assert "\n" not in answer.remedy
    assert not answer.remedy.endswith(".")
    return answer.remedy


def files(answer: Accepted | Rejection) -> list[str]:
    assert isinstance(answer, Accepted), answer
    return [variant.file for variant in answer.variants]


# --- one board, step by step ----------------------------------------------------------------------------------------


def test_each_step_towards_the_npu_of_an_rk3588_names_the_next_one() -> None:
    name = "soc/rk3588#rknn"
    tree = without("librknnrt", fixture("rk3588-bsp"))
    answer = judge(tree)[name]
    assert remedy(answer) == "add the user edged to the group render"
    assert "may not open /dev/dri/by-path/platform-fdab0000.npu-render" in answer.reason  # type: ignore[union-attr]
    held = ("render",)
    assert remedy(judge(tree, groups=held)[name]) == "install librknnrt.so 2.3 or newer from the board vendor"
    libraries = ("librknnrt.so",)
    assert "rknn_toolkit_lite2 2.3.2 or newer" in remedy(
        judge(tree, groups=held, libraries=libraries, roads=CPU_ONLY)[name]
    )
    bare = manifest(*VARIANTS[:2])
    answer = judge(tree, groups=held, libraries=libraries, package=bare)[name]
    assert answer == Rejection(
        candidate=name,
        reason="the package solder@3 has no int8 or fp16 variant for rknnlite/rk3588",
        remedy="make an int8 variant with rknn-toolkit2 on a PC (target_platform='rk3588')",
    )
    assert files(judge(tree, groups=held, libraries=libraries)[name]) == ["m.rknn", "m16.rknn"]


def test_a_file_for_another_chip_is_not_taken() -> None:
    other = manifest(Variant(file="m.rknn", runtime="rknnlite", precision="int8", target="rk3576"))
    answer = judge(fixture("rk3588-bsp"), groups=("render",), libraries=("librknnrt.so",), package=other)
    assert "has no int8 or fp16 variant for rknnlite/rk3588" in answer["soc/rk3588#rknn"].reason  # type: ignore[union-attr]
    assert "floor#onnxruntime" not in answer  # said by cpu/arm-dotprod already
    assert isinstance(answer["cpu/arm-dotprod#onnxruntime"], Rejection)


def test_an_old_driver_is_rejected_and_an_unknown_version_is_noted() -> None:
    tree = fixture("rk3588-bsp")
    ready = {"groups": ("render",), "libraries": ("librknnrt.so",)}
    answer = judge(tree + '\nf\t/sys/module/rknpu/version\t"0.8.8\\n"', **ready)["soc/rk3588#rknn"]  # type: ignore[arg-type]
    assert remedy(answer) == "update the kernel driver rknpu to 0.9.2 or newer"
    answer = judge(tree + '\nf\t/sys/module/rknpu/version\t"0.9.10\\n"', **ready)["soc/rk3588#rknn"]  # type: ignore[arg-type]
    assert isinstance(answer, Accepted)
    assert answer.notes == []


def test_a_driver_that_is_not_loaded_is_told_from_one_that_made_no_node() -> None:
    tree = without("/dev/accel", fixture("core-ultra"))
    loaded = judge(tree)["accel/intel-npu#openvino-npu"]
    assert remedy(loaded) == "look into the kernel log for why the driver intel_vpu made no node for this device"
    bare = without("intel_vpu", tree)
    assert remedy(judge(bare)["accel/intel-npu#openvino-npu"]) == "load the kernel driver intel_vpu"


def test_the_node_of_another_driver_does_not_count() -> None:
    tree = fixture("core-ultra").replace("/drivers/intel_vpu", "/drivers/amdxdna")
    assert remedy(judge(tree)["accel/intel-npu#openvino-npu"]) == "load the kernel driver intel_vpu"


def test_nodes_of_root_alone_need_a_rule() -> None:
    tree = fixture("qcs6490") + '\nc\t/dev/fastrpc-cdsp\t"0600 root:root 10:1"'
    assert remedy(judge(tree)["soc/qcs6490#qnn-htp"]) == (
        "give /dev/fastrpc-cdsp to a group with a udev rule and add the user edged to it"
    )


def test_a_hailo_takes_the_file_for_its_architecture() -> None:
    answers = judge(fixture("rpi5-hailo8"), libraries=("libhailort.so.4.23.0",))
    assert files(answers["accel/hailo8#hailo8"]) == ["m.hef"]
    assert "hw_arch 'hailo8l'" in remedy(answers["accel/hailo8#hailo8l"])


def test_the_edge_tpu_takes_compiled_files_only() -> None:
    tree = fixture("coral-usb")
    assert "libedgetpu1-std" in remedy(judge(tree)["accel/coral-usb#edgetpu"])
    answers = judge(tree, libraries=("libedgetpu.so.1",))
    assert files(answers["accel/coral-usb#edgetpu"]) == ["m-tpu.tflite"]
    plain = judge(tree, libraries=("libedgetpu.so.1",), package=manifest(VARIANTS[2]))
    assert "edgetpu_compiler" in remedy(plain["accel/coral-usb#edgetpu"])


def test_a_road_without_a_driver_says_that_nothing_need_be_done() -> None:
    answer = judge(fixture("imx8mp"))["soc/imx8mp#vx"]
    assert remedy(answer).startswith("nothing needs to be done")


def test_a_forbidden_candidate_names_who_forbids_it() -> None:
    site = parse_profile(
        b'schema = 1\nid = "site/x"\nversion = 1\nlayer = "site"\ndisable = ["accel/hailo8"]\n', "x.toml"
    )
    answer = judge(fixture("rpi5-hailo8"), profiles=(*shipped(), site))["accel/hailo8#hailo8"]
    assert isinstance(answer, Rejection)
    assert answer.reason == "the profile site/x forbids it"


# --- the CPU --------------------------------------------------------------------------------------------------------


def test_the_cpu_is_always_accepted_with_the_better_precision_first() -> None:
    answers = judge("", roads=CPU_ONLY)
    assert files(answers["floor#onnxruntime"]) == ["m.onnx", "m8.onnx"]
    assert files(answers["floor#litert"]) == ["m.tflite"]
    answers = judge(fixture("rk3588-bsp"), roads=CPU_ONLY)
    assert files(answers["cpu/arm-dotprod#onnxruntime"]) == ["m8.onnx", "m.onnx"]


def test_the_second_provider_on_x86_is_offered_when_it_is_installed() -> None:
    name = "cpu/x86-avx-vnni#openvino"
    assert "edged-cloudd[openvino]" in remedy(judge(fixture("core-ultra"), roads=CPU_ONLY)[name])
    assert files(judge(fixture("core-ultra"))[name]) == ["m8.onnx", "m.onnx"]


def test_a_missing_runtime_names_the_extra() -> None:
    host = TreeHost("")
    answer = gate(CPU_FLOOR[1], gather(host), host, FULL, {("onnxruntime", "cpu")})
    assert remedy(answer) == "install the extra: pip install 'edged-cloudd[tflite]'"


# --- properties and recordings --------------------------------------------------------------------------------------


def test_drivers_without_nodes_are_looked_up_as_modules() -> None:
    wanted = Candidate(
        id="accel/x#y",
        runtime="onnxruntime",
        precision=["fp32"],
        artefact=Artefact(format="onnx"),
        requires=Requires(driver=["some_npu"]),
    )
    host = TreeHost('f\t/sys/module/some_npu/refcnt\t"0"')
    assert isinstance(gate(wanted, gather(host), host, FULL, EVERYTHING), Accepted)
    empty = TreeHost("")
    assert remedy(gate(wanted, gather(empty), empty, FULL, EVERYTHING)) == "load the kernel driver some_npu"


TREES = sorted(path.stem for path in FIXTURES.glob("*.tree"))


@given(st.sampled_from(TREES), st.randoms(use_true_random=False), st.booleans())
def test_any_part_of_a_machine_gives_an_answer_for_every_candidate(name: str, rng: random.Random, held: bool) -> None:
    part = "\n".join(line for line in fixture(name).splitlines() if rng.random() < 0.7)
    answers = judge(part, groups=("render", "video") if held else ())
    assert any(isinstance(answer, Accepted) for answer in answers.values())
    for answer in answers.values():
        if isinstance(answer, Rejection):
            assert remedy(answer)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "candidate", "expected"),
    [
        ("rk3588-bsp61-orangepi5max", "soc/rk3588#rknn", ""),
        ("rk3588-bsp61-orangepi5max", "soc/rk3588#teflon", "nothing needs to be done"),
        ("core-ultra-7-258v", "accel/intel-npu#openvino-npu", "install Intel's NPU driver package, 1.16 or newer"),
        ("core-ultra-7-258v", "accel/intel-gpu#openvino-gpu", ""),
        ("hp-elitebook-8-g1a-ryzen-ai", "accel/amd-npu#vitisai", ""),
        ("hp-elitebook-8-g1a-ryzen-ai", "accel/amd-gpu#migraphx", "look into the kernel log"),
        ("rpi5-hailo8", "accel/hailo8#hailo8", "install HailoRT in the version of the loaded driver"),
        ("jetson-orin-nano-l4t36", "soc/tegra234#tensorrt", "use the board vendor's kernel"),
        ("jetson-orin-nano-l4t36", "soc/tegra234#cuda", "use the board vendor's kernel"),
        ("rubikpi3-qcs6490", "soc/qcs6490#qnn-htp", "use the board vendor's kernel"),
        ("imx8mp-evk", "soc/imx8mp#vx", "nothing needs to be done"),
        ("dgx-spark-gb10", "cpu/arm-sve2#onnxruntime", ""),
        ("intel-i7-1370p-hybrid", "cpu/x86-avx-vnni#openvino", ""),
        ("sm8550-class-x3-a715-a710-a510", "cpu/arm-i8mm#litert", ""),
        ("visionfive2-jh7110", "floor#onnxruntime", ""),
    ],
)
def test_recorded_machines_are_accepted_or_told_what_is_missing(
    name: str, candidate: str, expected: str, real_data: Path
) -> None:
    tree = (real_data.parent / "hardware" / "dumps" / "trees" / f"{name}.tree").read_text()
    answer = judge(tree, groups=("render", "video"))[candidate]
    if expected:
        assert remedy(answer).startswith(expected)
    else:
        assert isinstance(answer, Accepted)


# --- the target of a variant ----------------------------------------------------------------------------------------


def test_targets_are_written_read_and_checked_and_old_packages_stay_as_they_are() -> None:
    hashes = {variant.file: "0" * 64 for variant in VARIANTS} | {"l.txt": "0" * 64}
    full = Manifest(
        name="solder", version="3", labels="l.txt", input=InputSpec(width=8, height=8), variants=VARIANTS, files=hashes
    )
    text = manifest_text(full)
    assert parse_manifest(text.encode()).variants == VARIANTS
    assert "target" not in manifest_text(manifest(*VARIANTS[:3]))
    with pytest.raises(PackageError, match=r"variants\[4\]\.target. is missing; a file for rknnlite"):
        parse_manifest(text.replace('target = "rk3588"\n', "", 1).encode())
    with pytest.raises(PackageError, match="use 1 to 32 of a-z"):
        parse_manifest(text.replace('"hailo8"', '"Hailo 8"').encode())
    with pytest.raises(PackageError, match='one of "hailort", "litert", "onnxruntime", "rknnlite"'):
        parse_manifest(text.replace('"hailort"', '"hailo"').encode())
