"""The shipped profiles are valid, sourced and free of typos in their ids; the reader is strict and its errors help."""

from __future__ import annotations

import csv
import os
import re
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from edged.hardware import profiles as profiles_module
from edged.hardware import runtime_rules
from edged.hardware.profiles import (
    OVERRIDES,
    Profile,
    ProfileError,
    load_profiles,
    parse_profile,
    profile_directories,
    read_profiles,
)
from edgekit.runtimes.libraries import ROADS
from edgekit.runtimes.onnx_providers import PROVIDERS

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "firmware_profiles"
KNOWN_IDS = ROOT / "tests" / "fixtures" / "hardware" / "known_ids.txt"

GOOD = """\
schema = 1
id = "soc/example"
version = 1
layer = "soc"
sources = ["a data sheet"]

[[match]]
compatible = ["maker,chip"]

[[candidate]]
id = "cuda"
runtime = "onnxruntime"
provider = "cuda"
artefact = { format = "onnx" }
precision = ["fp16"]
prior = 80
options = { device_id = "0" }
requires.any_node = ["/dev/nvmap"]
requires.library = ["libcuda.so.1"]
"""


def shipped() -> list[Profile]:
    return load_profiles([SHIPPED])


def known_ids() -> dict[str, dict[str, str]]:
    """kind -> id -> source"""
    found: dict[str, dict[str, str]] = {"compatible": {}, "pci": {}, "usb": {}}
    for line in KNOWN_IDS.read_text().splitlines():
        if line and not line.startswith("#"):
            kind, one, source = line.split("\t")
            found[kind][one] = source
    return found


def used(kind: str) -> list[tuple[str, str]]:
    """(profile id, id) of every id of this kind in the shipped profiles."""
    return [(p.id, one) for p in shipped() for block in p.match for one in getattr(block, kind)]


def dts_tokens() -> set[str]:
    table = Path(os.environ.get("EDGED_REAL_DATA", "/nonexistent")).parent / "hardware" / "dts-boards-linux-7.2.csv"
    if not table.is_file():
        pytest.skip("the list of boards of Linux 7.2 is not here")
    with table.open(encoding="utf-8") as file:
        return {token for row in csv.DictReader(file) for token in row["compatible"].split()}


# --- the shipped ones -----------------------------------------------------------------------------------------------


def test_every_shipped_profile_is_valid_and_says_where_its_facts_come_from() -> None:
    profiles = shipped()
    assert len({p.id for p in profiles if p.layer in ("soc", "accel")}) >= 25
    for profile in profiles:
        assert (SHIPPED / f"{profile.id}.toml").is_file(), f"{profile.id} is in a file of another name"
        assert profile.sources and all(profile.sources), profile.id
        assert profile.name, profile.id
        assert "(?)" not in (SHIPPED / f"{profile.id}.toml").read_text()
        assert profile.candidate or profile.notes or profile.layer == "board" or profile.thermal.soft_c, profile.id


def test_only_what_ran_on_its_hardware_may_call_itself_measured() -> None:
    tested = {(road.runtime, road.provider) for road in ROADS if road.tested}
    for profile in shipped():
        if profile.status == "measured":
            assert profile.layer == "cpu", profile.id
            assert {(c.runtime, c.provider) for c in profile.candidate} <= tested, profile.id


@pytest.mark.parametrize("kind", ["compatible", "pci", "usb"])
def test_every_id_in_the_profiles_is_in_the_list_of_known_ids(kind: str) -> None:
    known = known_ids()[kind]
    for profile, one in used(kind):
        fits = one in known or ("*" in one and any(fnmatchcase(other, one) for other in known))
        assert fits, f"{profile}: {one} is in no list; is it a typo?"


def test_known_compatible_strings_are_those_of_the_kernels_device_trees() -> None:
    tokens = dts_tokens()
    for one, source in known_ids()["compatible"].items():
        if source == "Linux 7.2 dts":
            assert one in tokens, f"{one} is in no device tree of Linux 7.2"


@pytest.mark.parametrize(("kind", "file"), [("pci", "pci.ids"), ("usb", "usb.ids")])
def test_known_bus_ids_do_not_contradict_the_official_list(kind: str, file: str) -> None:
    path = Path("/usr/share/misc") / file
    if not path.is_file():
        pytest.skip(f"{file} is not installed")
    text = path.read_text("latin-1")
    version = re.search(r"^# *Version: *([0-9.]+)", text, re.M)
    old = version is None or version[1] < "2026.10"
    vendors: dict[str, set[str]] = {}
    vendor = ""
    for line in text.splitlines():
        if match := re.match(r"([0-9a-f]{4}) ", line):
            vendor = match[1]
            vendors[vendor] = set()
        elif match := re.match(r"\t([0-9a-f]{4}) ", line):
            vendors.setdefault(vendor, set()).add(match[1])
    found = 0
    for one, source in known_ids()[kind].items():
        maker, _, device = one.partition(":")
        if source != file:
            continue
        here = (device == "*" and maker in vendors) or device in vendors.get(maker, ())
        found += here
        assert here or old, f"{one} is not in {file}"
    assert found >= (10 if kind == "pci" else 0)


def test_all_options_in_the_profiles_are_taken_by_the_drivers() -> None:
    for (runtime, provider), rule in runtime_rules.RULES.items():
        if runtime == "onnxruntime":
            assert set(rule.options) <= PROVIDERS[provider].options, provider
            assert not runtime_rules.LOADS_CODE & set(rule.options)
    assert {(road.runtime, road.provider) for road in ROADS} <= set(runtime_rules.RULES)


def test_every_road_has_an_install_sentence_and_every_target_a_converter() -> None:
    for profile in shipped():
        for candidate in profile.candidate:
            assert runtime_rules.RULES[candidate.runtime, candidate.provider].install
            for target in candidate.artefact.targets or [""]:
                assert runtime_rules.converter(candidate.artefact.format, target, candidate.precision[0])


# --- finding --------------------------------------------------------------------------------------------------------


def test_a_checkout_uses_its_own_profiles_and_then_the_sites() -> None:
    assert profile_directories() == [SHIPPED, OVERRIDES]


def test_an_installed_edged_uses_what_the_package_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(profiles_module, "__file__", str(tmp_path / "site-packages/edged/hardware/profiles.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert profile_directories() == [tmp_path / "share/edged/firmware_profiles", OVERRIDES]


def test_the_package_installs_every_profile() -> None:
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    packed = {
        place.removeprefix("share/edged/"): {path.name for pattern in patterns for path in ROOT.glob(pattern)}
        for place, patterns in files.items()
        if place.startswith("share/edged/firmware_profiles")
    }
    there: dict[str, set[str]] = {}
    for path in SHIPPED.rglob("*.toml"):
        there.setdefault(str(path.parent.relative_to(ROOT)), set()).add(path.name)
    assert packed == there


# --- the reader -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sources =", "source =", 'did you mean "sources"'),
        ('["a data sheet"]', "[]", '"sources" is empty'),
        ("compatible", "compatibel", 'did you mean "compatible"'),
        ('"soc/example"', '"cpu/example"', 'it must begin with "soc/"'),
        ('"soc/example"', '"soc/../../etc"', "a layer and a name"),
        ('layer = "soc"', 'layer = "chip"', "one of"),
        ("schema = 1", "schema = 2", '"schema" is 2'),
        ('["maker,chip"]', '["chip"]', "vendor,device"),
        ('["maker,chip"]', "[]", "it would match every machine"),
        ('provider = "cuda"', 'provider = "cudda"', 'did you mean "cuda"'),
        ('runtime = "onnxruntime"', 'runtime = "shell"', "one of"),
        ('format = "onnx"', 'format = "rknn"', '"onnx" belongs there'),
        ('["fp16"]', '["fp8"]', "one of"),
        ('["fp16"]', "[]", "at least one precision"),
        ("prior = 80", "prior = 800", "at most 100"),
        ('device_id = "0"', 'trt_fp16_enable = "True"', "is not allowed for onnxruntime on cuda"),
        ('device_id = "0"', 'device_id = "0; reboot"', "does not take"),
        ('device_id = "0"', "device_id = 0", "text belongs there"),
        ("prior = 80", "prior = 80\nsearch = { device_id = [] }", "0 combinations"),
        ("prior = 80", f"prior = 80\nworkers = {[1] * 65}", "65 combinations"),
        ("/dev/nvmap", "/dev/../etc/passwd", "below /dev"),
        ("/dev/nvmap", "/etc/passwd", "below /dev"),
        ("libcuda.so.1", "/tmp/evil.so", "which is unknown"),
        ("libcuda.so.1", "libcuda.so", 'did you mean "libcuda.so.1"'),
        ("version = 1", 'version = 1\ndisable = ["cpu/x"]', "only a profile of the layers board and site"),
    ],
)
def test_a_profile_with_a_mistake_is_refused_with_the_key_and_what_is_right(old: str, new: str, message: str) -> None:
    parse_profile(GOOD.encode(), "good.toml")
    assert old in GOOD
    with pytest.raises(ProfileError) as caught:
        parse_profile(GOOD.replace(old, new, 1).encode(), "bad.toml")
    assert message in str(caught.value)
    assert "bad.toml" in str(caught.value)


@pytest.mark.parametrize("option", sorted(runtime_rules.LOADS_CODE))
def test_options_that_load_code_or_name_paths_are_refused_for_every_road(option: str) -> None:
    for runtime, provider in runtime_rules.RULES:
        assert "which a profile must not" in runtime_rules.check_option(runtime, provider, option, "/tmp/x.so")
    with pytest.raises(ProfileError, match="loads code or names a path"):
        parse_profile(GOOD.replace("device_id", option).encode(), "bad.toml")
    with pytest.raises(ProfileError, match="loads code or names a path"):
        parse_profile(
            GOOD.replace("options = { device_id", f'search = {{ {option} = ["x"], a')
            .replace(', a = "0" }', " }")
            .encode(),
            "bad.toml",
        )


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = [" * 5000, b"x" * 100_000, b"schema = 1\nschema = 1\n", b""])
def test_garbage_is_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(ProfileError, match=r"bad\.toml"):
        parse_profile(data, "bad.toml")


def test_a_site_profile_needs_neither_sources_nor_match() -> None:
    text = 'schema = 1\nid = "site/x"\nversion = 1\nlayer = "site"\ndisable = ["soc/rk3588#rknn"]\n'
    assert parse_profile(text.encode(), "x.toml").disable == ["soc/rk3588#rknn"]


def test_a_later_directory_replaces_a_profile_and_a_broken_file_is_left_out_but_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "one.toml").write_text(GOOD)
    (tmp_path / "a" / "two.toml").write_text(GOOD)
    (tmp_path / "b" / "one.toml").write_text(GOOD.replace("version = 1", "version = 7"))
    (tmp_path / "b" / "broken.toml").write_text(GOOD.replace("sources", "sauces"))
    (tmp_path / "b" / "folder.toml").mkdir()
    found, problems = read_profiles([tmp_path / "a", tmp_path / "b", tmp_path / "missing"])
    assert [profile.ref for profile in found] == ["soc/example@7"]
    assert any("both have the id" in one for one in problems)
    assert any("broken.toml" in one and 'did you mean "sources"' in one for one in problems)
    assert any("folder.toml is not a regular file" in one for one in problems)
    with pytest.raises(ProfileError):
        load_profiles([tmp_path / "b"])
