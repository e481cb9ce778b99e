"""What every process does that learns in the background."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import sys
from edged.background import give_memory_back

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))

if sys.argv[1] == "back":
    give_memory_back()
del (large := [bytearray(24 << 20)])[:]  # as large as a weight; glibc now keeps every block up to this size
before = anonymous()
blocks = [bytearray(b"x") * (1 << 20) for _ in range(64)]
last = blocks[-1]
del blocks
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blocks_that_are_freed_go_back_to_the_system() -> None:
    kept = {}
    for way in ("back", "default"):
        done = subprocess.run([sys.executable, "-c", _SCRIPT, way], capture_output=True, text=True, check=True)
        kept[way] = int(done.stdout)
    assert kept["back"] < 4 << 10  # KiB: the one block that is still used, and a little
    if kept["default"] > 32 << 10:  # glibc; other libraries give everything back by themselves
        assert kept["back"] < kept["default"] / 8
