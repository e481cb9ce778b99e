"""Recordings: the same facts as the machine, and nothing that names it or a person."""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.hardware.facts import gather
from edged.hardware.host import RealHost, TreeHost
from edged.hardware.record import record
from edged.hardware.thermal import read_temperatures, throttled

FIXTURES = Path(__file__).parents[2] / "fixtures" / "hardware"
TREES = {path.stem: path.read_text() for path in sorted(FIXTURES.glob("*.tree"))}
SECRETS = """\
f	/proc/version	"Linux version 6.1.43 (erika@factory-host-7) (gcc) #1 SMP"
f	/proc/sys/kernel/hostname	"factory-host-7"
f	/proc/self/cgroup	"0::/user.slice/user-1000.slice/erika.scope\\n"
f	/sys/fs/cgroup/user.slice/user-1000.slice/memory.max	"1073741824\\n"
f	/proc/self/status	"Name:\\terika\\nUid:\\t1000\\nCpus_allowed_list:\\t0-1\\n"
f	/sys/class/dmi/id/product_serial	"SN-5CD1234XYZ"
f	/sys/class/dmi/id/product_uuid	"4c4c4544-0035-3510-8052-c4c04f4e3532"
f	/sys/class/dmi/id/board_name	"4c4c4544-0035-3510-8052-c4c04f4e3532"
f	/sys/class/net/eth0/address	"a0:b1:c2:d3:e4:f5"
f	/sys/bus/usb/devices/2-1/serial	"SN-5CD1234XYZ"
f	/sys/bus/pci/devices/0000:c4:00.1/uevent	"DRIVER=amdxdna\\nPCI_SLOT_NAME=0000:c4:00.1\\n"
f	/sys/bus/pci/devices/0000:c4:00.1/vendor	"0x1022\\n"
f	/sys/bus/pci/devices/0000:c4:00.1/device	"0x17f0\\n"
f	/sys/devices/soc0/serial_number	"SN-5CD1234XYZ"
f	/proc/device-tree/serial-number	"10000000deadbeef\\u0000"
f	/sys/class/power_supply/sony_a0:b1:c2:d3:e4:f5/type	"Battery\\n"
f	/sys/class/hwmon/hwmon9/name	"sony_a0_b1_c2_d3_e4_f5\\n"
c	/dev/hailo7	"0660 erika:root 1:2"
"""
ADDRESSES = re.compile(r"(?i)\b[0-9a-f]{2}([:_-][0-9a-f]{2}){5}\b|\b(?:\d{1,3}\.){3}\d{1,3}\b")


def same(machine: TreeHost | RealHost, copy: TreeHost) -> None:
    assert gather(copy) == gather(machine)


@pytest.mark.parametrize("name", TREES)
def test_a_recording_gives_the_same_facts(name: str) -> None:
    machine = TreeHost(TREES[name], groups=("render",))
    text = record(machine)
    copy = TreeHost(text)  # without the groups: the recording says what was openable
    same(machine, copy)
    assert read_temperatures(copy) == read_temperatures(machine)
    assert throttled(copy) == throttled(machine)
    assert record(copy) == text


def test_this_machine_recorded_gives_the_same_facts_and_no_name() -> None:
    text = record(RealHost())
    same(RealHost(), TreeHost(text))
    assert socket.gethostname() not in text.split()
    for address in Path("/sys/class/net").glob("*/address"):
        if (found := address.read_text().strip()).strip("0:"):
            assert found not in text
    assert not ADDRESSES.search(text)


def test_nothing_that_names_the_specimen_is_recorded() -> None:
    machine = TreeHost(TREES["rpi5-hailo8"] + SECRETS)
    text = record(machine)
    same(machine, TreeHost(text))
    for secret in ("erika", "factory", "SN-5CD", "4c4c4544", "deadbeef", "user.slice", "user-1000", "c4:00", "Serial"):
        assert secret not in text, secret
    assert not ADDRESSES.search(text)
    assert gather(machine).memory_limit == 2**30, "the limit itself is kept"


def test_slots_and_ports_are_numbered_anew() -> None:
    coral = record(TreeHost(TREES["coral-usb"]))
    assert "/sys/bus/usb/devices/1-1/1-1:1.0/bInterfaceClass" in coral
    assert "1-4.2" not in coral
    ryzen = record(TreeHost(TREES["ryzen-ai"]))
    assert "0000:c4" not in ryzen


def test_presence_of_libraries_is_recorded_without_their_content() -> None:
    machine = TreeHost(TREES["rk3588-bsp"].replace('librknnrt.so\t""', 'librknnrt.so\t"secret"'))
    assert "librknnrt" not in record(machine)
    text = record(machine, present=["/usr/lib/librknnrt.so*", "/usr/lib/none*"])
    assert TreeHost(text).read("/usr/lib/librknnrt.so") == b""


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(TREES)), seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_any_part_of_a_tree_can_be_recorded(name: str, seed: int, share: float) -> None:
    rng = random.Random(seed)
    machine = TreeHost("\n".join(line for line in TREES[name].splitlines() if rng.random() < share))
    same(machine, TreeHost(record(machine)))


@pytest.mark.real_data
def test_recorded_trees_survive_being_recorded_again(real_data: Path) -> None:
    folder = real_data / ".." / "hardware" / "dumps" / "trees"
    trees = sorted(folder.glob("*.tree"))
    if not trees:
        pytest.skip("no recorded trees beside the real data")
    for path in trees:
        machine = TreeHost(path.read_text())
        same(machine, TreeHost(record(machine)))
