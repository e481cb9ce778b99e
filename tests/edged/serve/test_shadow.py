"""A candidate in its own process beside a worker: what it sees, what it counts, and what its end does to others."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from edged.serve.shadow.shadow import Shadow
from edged.serve.shadow.wire import Order
from edgekit.messages import UNSEEN, Answer, Decision, HardSample, Level, SendReason, Verdict
from edgekit.packages import open_package, seal_package
from tests.support.models import make_package, picture
from tests.support.plant import LABELS, definition

T = TypeVar("T")


class Bench:
    """Shadows, and what they told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told: list[tuple[Level, str, str, bool]] = []
        self.shadows: list[Shadow] = []
        self.count = 0

    def tell(self, level: Level, code: str, text: str, *, passing: bool = False) -> None:
        self.told.append((level, code, text, passing))

    def shadow(self, *, share: float = 1.0, asks: bool = True, text: str = "", **package: object) -> Shadow:
        """Of a candidate that sorts by brightness; `package` changes it."""
        directory = self.root / f"candidate-{len(self.shadows)}"
        made = make_package(directory, "brightness.solder", "1-1", **({"labels": LABELS} | package))  # type: ignore[arg-type]
        order = Order(
            definition=text or definition("solder", hard_samples={"mode": "risk", "answer_model": "large"}),
            candidate=made.ref,
            directory=str(directory),
            known=LABELS,
            asks=asks,
        )
        shadow = Shadow("solder", order, self.tell, share)
        self.shadows.append(shadow)
        return shadow

    def decide(
        self, label: str, sent: SendReason | None = None, cloud: str | None = None, edge: str | None = None
    ) -> Decision:
        self.count += 1
        said = Verdict(label=edge or label, score=0.9, margin=0.8, model="brightness@1")
        answer = Verdict(label=cloud, score=0.9, margin=0.9, model="large@1") if cloud is not None else None
        return Decision(
            sample_id=f"s{self.count}", service="solder", label=label, score=0.9, decided="edge",
            model="brightness@1", edge=said, cloud=answer, sent=sent,
        )  # fmt: skip

    def late(self, sample: Decision, label: str) -> tuple[HardSample, Answer]:
        header = HardSample(
            sample_id=sample.sample_id, service="solder", answer_model="large", edge=sample.edge,
            reason=sample.sent or "audit", captured_at=0.0,
        )  # fmt: skip
        verdict = Verdict(label=label, score=0.9, margin=0.9, model="large@1")
        return header, Answer(sample_id=sample.sample_id, verdict=verdict, compute_ms=1.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for shadow in bench.shadows:
        shadow.stop()


def until(look: Callable[[], T | None], within: float = 100.0) -> T:
    end = time.monotonic() + within
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return found


def looks(shadow: Shadow, decision: Decision, data: bytes) -> None:
    """Offer a picture and wait until it has been looked at."""
    before = shadow.report().items
    shadow.offer(decision, data)
    until(lambda: shadow.report().items == before + 1)


def process() -> psutil.Process | None:
    """The candidate's process of this one."""
    for child in psutil.Process().children(recursive=True):
        try:
            if "edged.serve.shadow" in child.cmdline():
                return child
        except psutil.Error:  # it has just ended
            continue
    return None


def test_it_counts_what_agrees_and_what_the_cloud_says_now_or_later(bench: Bench) -> None:
    shadow = bench.shadow(flip=True)  # says the opposite but for the middle
    shadow.start()
    looks(shadow, bench.decide("dim"), picture(0.5))
    looks(shadow, bench.decide("dark", "hard", "bright", edge="dark"), picture(0.1))
    audit = bench.decide("dark", "audit")
    looks(shadow, audit, picture(0.1))
    report = shadow.report()
    assert (report.candidate, report.items, report.agreeing, report.sent) == ("brightness.solder@1-1", 3, 1, 1)
    assert (report.audits, report.lost, report.gained, report.unusable, report.skipped) == (1, 0, 1, 0, 0)
    assert report.p95_ms is not None and 0.0 < report.p95_ms < 1000.0
    shadow.answered(*bench.late(audit, "dark"))
    until(lambda: shadow.report().audits == 2)
    assert (shadow.report().lost, shadow.report().gained) == (1, 1)
    assert bench.told == []


def test_an_answer_that_comes_before_its_picture_was_looked_at_is_not_lost(bench: Bench) -> None:
    shadow = bench.shadow()
    audit = bench.decide("dark", "audit")
    shadow.offer(audit, picture(0.1))
    shadow.answered(*bench.late(audit, "dark"))
    shadow.start()
    until(lambda: shadow.report().audits == 1)


def test_one_picture_waits_and_the_newest_takes_its_place(bench: Bench) -> None:
    shadow = bench.shadow()
    for brightness in (0.1, 0.2, 0.9):
        shadow.offer(bench.decide("bright"), picture(brightness))
    shadow.start()
    report = until(lambda: (r := shadow.report()).items and r)
    assert (report.items, report.agreeing, report.skipped) == (1, 1, 2)


def test_pictures_that_the_present_model_has_not_seen_are_no_items(bench: Bench) -> None:
    shadow = bench.shadow()
    shadow.start()
    shadow.offer(bench.decide("bright", cloud="bright", edge=UNSEEN), picture(0.9))
    looks(shadow, bench.decide("bright"), picture(0.9))
    assert (shadow.report().items, shadow.report().skipped) == (1, 0)


def test_a_picture_that_nobody_can_read_says_nothing_about_the_candidate(bench: Bench) -> None:
    shadow = bench.shadow()
    shadow.start()
    shadow.offer(bench.decide("bright"), b"no picture")
    looks(shadow, bench.decide("bright"), picture(0.9))
    assert (shadow.report().items, shadow.report().unusable) == (1, 0)


def blind_in_the_light(directory: Path) -> None:
    """Have the candidate in this directory divide by zero for bright pictures."""
    package = open_package(directory, verify=False)
    model = onnx.load(directory / "model.onnx")
    graph = model.graph
    graph.node[-1].output[0] = "finite"
    graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "one"))
    for kind, inputs, output in (
        ("Round", ["mean"], "light"), ("Sub", ["one", "light"], "dark"), ("Div", ["finite", "dark"], "logits"),
    ):  # fmt: skip
        graph.node.append(helper.make_node(kind, inputs, [output]))
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    seal_package(directory, package.manifest)


def test_an_answer_that_is_no_number_is_counted_and_the_shadow_goes_on(bench: Bench) -> None:
    shadow = bench.shadow(samples=False)
    blind_in_the_light(bench.root / "candidate-0")
    shadow.start()
    looks(shadow, bench.decide("bright", "hard", "bright"), picture(0.9))
    looks(shadow, bench.decide("dark", "hard", "dark"), picture(0.1))
    report = shadow.report()
    assert (report.items, report.unusable, report.agreeing, report.audits) == (2, 1, 1, 1)
    assert report.failure == ""


def test_it_uses_no_more_than_its_share_of_a_cpu(bench: Bench) -> None:
    shadow = bench.shadow(share=0.1, work=150)  # tens of milliseconds a picture
    shadow.start()
    looks(shadow, bench.decide("bright"), picture(0.9))
    child = until(process)
    used, began = child.cpu_times(), time.monotonic()
    while shadow.report().items < 5 or time.monotonic() < began + 1.0:
        assert time.monotonic() < began + 100.0
        shadow.offer(bench.decide("bright"), picture(0.9))
        time.sleep(0.002)
    now = child.cpu_times()
    share = (now.user + now.system - used.user - used.system) / (time.monotonic() - began)
    assert shadow.report().skipped > 100
    assert share < 0.25, "with the frames around it, and the grain of the clock"


def test_its_process_gives_way_and_is_the_first_to_go(bench: Bench) -> None:
    shadow = bench.shadow()
    shadow.start()
    looks(shadow, bench.decide("bright"), picture(0.9))
    child = until(process)
    assert child.nice() == 19
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000"
    limits = Path(f"/proc/{child.pid}/limits").read_text()
    data = next(line for line in limits.splitlines() if line.startswith("Max data size"))
    assert "unlimited" not in data.split("size")[1].split("bytes")[0].split()[0]


def test_a_candidate_that_dies_ends_its_shadow_with_a_sentence(bench: Bench) -> None:
    shadow = bench.shadow()
    shadow.start()
    looks(shadow, bench.decide("bright"), picture(0.9))
    os.kill(until(process).pid, signal.SIGSEGV)
    shadow.offer(bench.decide("bright"), picture(0.9))
    report = until(lambda: (r := shadow.report()).failure and r)
    assert report.failure == "its process was ended by SIGSEGV"
    assert (report.items, report.agreeing) == (1, 1), "what it had counted stays"
    assert bench.told == [
        (
            "warning",
            "shadow:solder",
            "The candidate brightness.solder@1-1 does not look at the pictures of solder: "
            "its process was ended by SIGSEGV.",
            True,
        )
    ]
    shadow.offer(bench.decide("bright"), picture(0.9))  # nobody is there any more, and that is no fault


@pytest.mark.parametrize("damage", ["model.onnx", "package.toml"])
def test_a_candidate_that_cannot_be_loaded_fails_alone(bench: Bench, damage: str) -> None:
    shadow = bench.shadow()
    (bench.root / "candidate-0" / damage).write_bytes(b"broken")
    shadow.start()
    assert "cannot be used" in until(lambda: shadow.report().failure)


def test_a_candidate_without_the_labels_of_the_service_is_refused(bench: Bench) -> None:
    rules = definition("solder", decision={"pass": ["bright"], "fail": ["dark"]})
    shadow = bench.shadow(labels=["night", "bright"], text=rules)
    shadow.start()
    assert "dark" in until(lambda: shadow.report().failure)


def test_the_wrong_package_in_the_directory_is_noticed(bench: Bench) -> None:
    shadow = bench.shadow()
    make_package(bench.root / "candidate-0", "brightness.other", "7", labels=LABELS)
    shadow.start()
    assert "says that it is brightness.other@7" in until(lambda: shadow.report().failure)


def test_stopping_ends_the_process_at_once_and_is_no_failure(bench: Bench) -> None:
    shadow = bench.shadow()
    shadow.start()
    looks(shadow, bench.decide("bright"), picture(0.9))
    child = until(process)
    shadow.stop()
    child.wait(5.0)
    assert shadow.report().failure == "" and bench.told == [] and shadow.report().items == 1


def test_one_that_is_stopped_while_it_loads_leaves_no_process(bench: Bench) -> None:
    shadow = bench.shadow()
    shadow.start()
    child = until(process)
    shadow.stop()
    child.wait(5.0)
    assert bench.told == []


async def test_offering_a_picture_costs_the_event_loop_microseconds(bench: Bench) -> None:
    shadow = bench.shadow(share=0.01, work=20)
    shadow.start()
    await asyncio.to_thread(looks, shadow, bench.decide("bright"), picture(0.9))
    decision, data = bench.decide("bright"), picture(0.9, side=512)
    times = []
    for _ in range(2000):
        began = time.perf_counter()
        shadow.offer(decision, data)
        times.append(time.perf_counter() - began)
    assert sorted(times)[1000] < 50e-6, "the median, on a busy machine"


def test_its_command_runs_without_a_worker_that_talks() -> None:
    """The other end is closed at once: it ends by itself."""
    import socket
    import subprocess

    ours, theirs = socket.socketpair()
    child = subprocess.Popen(
        [sys.executable, "-m", "edged.serve.shadow", "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    ours.close()
    assert child.wait(20.0) == 0
