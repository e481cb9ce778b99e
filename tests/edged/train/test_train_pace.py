from __future__ import annotations

import pytest

from edged.hardware.host import TreeHost
from edged.train.pace import Halted, Pace
from edged.train.sensors import machine
from edgekit.learning.budget import Budget, Reading
from edgekit.messages.learning import TrainProgress


class Time:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


def pace(time: Time, budget: Budget, reading: Reading | None = None) -> tuple[Pace, list[TrainProgress]]:
    said: list[TrainProgress] = []
    return Pace(budget, lambda: reading or Reading(), time.clock, time.sleep, said.append), said


def test_a_third_of_the_processor_means_two_seconds_of_rest_for_each_of_work() -> None:
    time = Time()
    mine, _ = pace(time, Budget(cpu_share=1 / 3))
    for done in range(10):
        time.now += 1.0
        mine.turn("judging", done, 10)
    assert time.slept == pytest.approx(20.0) and mine.seconds == pytest.approx(10.0)


def test_too_much_memory_ends_the_job_and_says_so() -> None:
    mine, _ = pace(Time(), Budget(max_memory=1 << 20), Reading(memory=2 << 20))
    with pytest.raises(Halted, match="2 MiB of memory; 1 MiB are allowed") as raised:
        mine.turn("judging", 0, 10)
    assert not raised.value.asked


def test_heat_is_waited_for() -> None:
    time, readings = Time(), iter([Reading(celsius=90.0), Reading(celsius=84.0), Reading(celsius=79.0)])
    mine = Pace(Budget(max_celsius=85.0), lambda: next(readings), time.clock, time.sleep, lambda progress: None)
    mine.turn("judging", 0, 10)
    assert time.slept == pytest.approx(10.0)


def test_a_pause_ends_a_rest_and_reaches_whoever_trains() -> None:
    time = Time()
    mine, _ = pace(time, Budget(cpu_share=0.01))
    heard: list[str] = []
    mine.hand_over(heard.append)
    mine.pause("it was asked to pause")
    mine.rest(60.0)
    assert heard == ["it was asked to pause"] and time.slept == 0
    mine.hand_over(None)
    with pytest.raises(Halted) as raised:
        mine.turn("judging", 0, 10)
    assert raised.value.asked


def test_four_messages_a_second_are_enough_and_the_last_one_always_comes() -> None:
    time = Time()
    mine, said = pace(time, Budget())
    for done in range(1, 101):
        time.now += 0.01
        mine.turn("features", done, 100)
    assert 4 <= len(said) <= 6 and said[-1].done == 100
    mine.turn("judging", 1, 9)
    assert said[-1].step == "judging", "another step is told at once"


def test_sensors_tell_memory_and_the_hottest_zone_and_look_at_heat_every_two_seconds() -> None:
    zones = "/sys/class/thermal/thermal_zone"
    time = Time()

    def tree(celsius: int) -> str:
        lines = [f'f\t{zones}{n}/type\t"cpu"\nf\t{zones}{n}/temp\t"{t}000"' for n, t in ((0, 41), (1, celsius))]
        return "\n".join(lines)

    host = TreeHost(tree(63))
    look = machine(host, time.clock)
    reading = look()
    assert reading.celsius == 63.0 and reading.memory and reading.free_memory
    host.__init__(tree(70))  # type: ignore[misc]
    assert look().celsius == 63.0
    time.now += 2
    assert look().celsius == 70.0


def test_work_of_earlier_runs_counts() -> None:
    time = Time()
    mine, _ = pace(time, Budget())
    mine.worked_before(30.0)
    time.now += 5
    assert mine.seconds == pytest.approx(35.0)
