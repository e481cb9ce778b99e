"""What a candidate's process waits for before it loads anything."""

from __future__ import annotations

from pathlib import Path

from edged.serve.shadow import bounds
from tests.support.models import make_package


class Machine:
    """Has so much memory at each look; its clock goes on while somebody sleeps."""

    def __init__(self, *left: int) -> None:
        self.left = list(left)
        self.now = 100.0

    def there_is(self) -> int:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def wait_for(self, wanted: int) -> tuple[int, str]:
        return bounds.await_memory(wanted, self.there_is, lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_with_enough_memory_nobody_waits() -> None:
    machine = Machine(500)
    assert machine.wait_for(500) == (500, "") and machine.now == 100.0


def test_memory_that_a_draining_worker_gives_back_is_waited_for() -> None:
    machine = Machine(100, 100, -5, 900)
    assert machine.wait_for(500) == (900, "")
    assert 100.0 < machine.now < 100.0 + bounds.PATIENCE_S


def test_too_little_memory_is_a_sentence_in_the_end() -> None:
    machine = Machine(40 << 20)
    left, problem = machine.wait_for(300 << 20)
    assert left == 40 << 20
    assert problem == "it would need about 300 MiB of memory, and 40 MiB are left"
    assert Machine(-1).wait_for(1 << 20)[1].endswith("and 0 MiB are left")


def test_the_need_is_that_of_the_process_and_of_its_model(tmp_path: Path) -> None:
    package = make_package(tmp_path / "candidate", "brightness.solder", "1-1")
    assert bounds.need(package.ref, str(package.root)) > bounds.BASE
    assert bounds.left() > 0
