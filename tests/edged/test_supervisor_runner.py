"""The runner with real worker processes that misbehave on demand: swap, refusal, last good, crash loops, hangs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from support import scripted_worker
from support.scripted_worker import EXIT, FAIL, HANG, SEGFAULT, TROUBLE

from edged import runner as runner_module
from edged.briefing import pinned
from edged.desired import MIGRATIONS, Change, DesiredStore, model_entry
from edged.health import Health
from edged.memory import BASE, SLACK, SPARE, Memory
from edged.plan import Plan
from edged.runner import Runner
from edged.store import Database
from edged.worker import Worker
from edgekit.messages import Configure, Link, LinkChanged, ModelDone, ModelWanted, ServiceReport


def definition(name: str, deadline: float = 100, model: str = "m") -> str:
    return f'name = "{name}"\nmodel = "{model}"\ndeadline_ms = {deadline}\n'


NEED = BASE + SLACK
"""What a worker with one model needs before any has measured: the benches' packages have no files."""


class Bench:
    """A runner on its own store, with a log of what its workers were told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log_path = directory / "worker.log"
        self.packages = {"m@1": directory}
        self.wanted: list[tuple[ModelWanted, Worker]] = []
        self.store = DesiredStore(Database(directory / "edged.db", MIGRATIONS), directory / "services")
        self.health = Health()
        self.listener = socket.create_server(("127.0.0.1", 0))
        (directory / "empty").mkdir()
        script = scripted_worker.__file__

        def command(control: int, http: int) -> list[str]:
            return [sys.executable, script, str(control), str(http), str(self.log_path)]

        def configure(plan: Plan) -> Configure:
            return Configure(
                state_dir=str(directory),
                services=[pinned(choice) for choice in plan.services],
                packages={},
                link=Link(),
                spool_quota=1,
                spool_reserve=1,
                models=list(plan.models),
            )

        self.runner = Runner(
            self.listener,
            directory / "empty",
            self.store,
            lambda: self.packages,
            configure,
            self.health,
            command=command,
            on_model_wanted=lambda message, worker: self.wanted.append((message, worker)),
            memory=Memory(directory / "machine"),
        )

    def available(self, size: int) -> None:
        """Let the machine have so many bytes of memory left."""
        proc = self.directory / "machine" / "proc"
        proc.mkdir(parents=True, exist_ok=True)
        (proc / "meminfo").write_text(f"MemTotal: {8 << 20} kB\nMemAvailable: {size >> 10} kB\n")

    def want(self, **deadlines: float) -> None:
        """Add or replace services by name=deadline."""
        self.store.apply(Change(put={name: definition(name, deadline) for name, deadline in deadlines.items()}))
        self.runner.changed(by_hand=True)

    def drop(self, name: str) -> None:
        self.store.apply(Change(remove=[name]))
        self.runner.changed(by_hand=True)

    @property
    def configured(self) -> list[Configure]:
        """What the workers were told at their start."""
        return [msgspec.json.decode(line.partition(" ")[2], type=Configure) for line in self.lines("configure")]

    def reports(self) -> dict[str, ServiceReport]:
        return {report.name: report for report in self.runner.standing.reports()}

    def lines(self, word: str) -> list[str]:
        text = self.log_path.read_text() if self.log_path.exists() else ""
        return [line for line in text.splitlines() if line.startswith(word)]

    async def until(self, what: Callable[[], object], timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not what():
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def at_work(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.create_task(bench.runner.run())
    try:
        yield bench
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await bench.runner.stop()
        bench.listener.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with at_work(Bench(tmp_path)) as bench:
        yield bench


async def test_a_change_swaps_to_a_ready_successor_before_the_old_one_drains(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    assert bench.reports()["a"].state == "ready"
    first = bench.runner.worker
    bench.want(b=200)
    assert await bench.runner.settled(20)
    assert bench.runner.worker is not first
    assert {name: report.state for name, report in bench.reports().items()} == {"a": "ready", "b": "ready"}
    assert first is not None
    await bench.until(lambda: not first.alive)
    assert first.exited.result() == 0
    assert bench.lines("drain") == [f"drain {first.pid}"]
    assert bench.runner.restarts == 0


async def test_the_same_wish_again_does_nothing(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.want(a=100)
    assert await bench.runner.settled(20)
    assert len(bench.lines("start")) == len(set(bench.lines("start")))
    assert [line for line in bench.lines("start") if "a:100" in line] == bench.lines("start")[-1:]


async def test_a_failed_definition_keeps_the_old_worker_and_says_why(bench: Bench) -> None:
    bench.want(a=100, b=100)
    assert await bench.runner.settled(20)
    old = bench.runner.worker
    bench.want(a=FAIL)
    assert await bench.runner.settled(20)
    assert bench.runner.worker is old
    assert bench.reports()["a"].state == "ready"
    entry = bench.runner.standing.entries["a"]
    assert entry.refused_why == "the model said no"
    running = bench.runner.standing.running("a")
    assert running is not None and running.last_good and "100" in running.text
    assert any("the model said no" in event.text for event in bench.health.state().events)


async def test_other_changes_go_on_beside_a_refused_one(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.want(a=FAIL, b=300)
    assert await bench.runner.settled(20)
    assert bench.reports()["b"].state == "ready"
    assert "a:100" in bench.lines("start")[-1] and "b:300" in bench.lines("start")[-1]


async def test_a_new_definition_is_tried_after_a_refusal(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.want(a=FAIL)
    assert await bench.runner.settled(20)
    bench.want(a=150)
    assert await bench.runner.settled(20)
    running = bench.runner.standing.running("a")
    assert running is not None and not running.last_good
    assert "a:150" in bench.lines("start")[-1]


async def test_a_definition_that_kills_the_worker_is_refused_and_the_others_serve(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    old = bench.runner.worker
    bench.want(b=SEGFAULT)
    assert await bench.runner.settled(20)
    assert bench.runner.worker is old, "the present worker never stopped"
    report = bench.reports()["b"]
    assert report.state == "failed"
    assert "SIGSEGV" in report.detail


async def test_the_killer_among_several_new_services_is_found(bench: Bench) -> None:
    bench.want(a=100, b=SEGFAULT, c=100, d=100)
    await bench.until(lambda: {n: r.state for n, r in bench.reports().items()}.get("d") == "ready", 40)
    assert await bench.runner.settled(20)
    assert {n: r.state for n, r in bench.reports().items()} == {
        "a": "ready",
        "b": "failed",
        "c": "ready",
        "d": "ready",
    }


async def test_what_was_good_comes_back_after_a_restart_of_the_supervisor(bench: Bench, tmp_path: Path) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.want(a=FAIL)
    assert await bench.runner.settled(20)
    other = DesiredStore(Database(tmp_path / "edged.db", MIGRATIONS), tmp_path / "services")
    assert other.open() == []
    (entry,) = other.entries()
    assert (entry.good_text, entry.good_ref) == (definition("a", 100), "m@1")
    assert entry.refused_why == "the model said no"


async def test_a_killed_worker_is_replaced_at_once_and_connections_wait(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    worker = bench.runner.worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    with socket.create_connection(bench.listener.getsockname(), 2):
        pass  # the supervisor holds the socket: the kernel takes the connection
    await bench.until(lambda: bench.runner.worker not in (None, worker) and bench.runner.state() == "ready")
    assert bench.runner.restarts == 1
    assert bench.health.level() == "ok"


async def test_a_crash_loop_raises_a_health_item_and_ends_when_the_cause_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.worker.FIRST_DELAY_S", 0.01)
    started = Bench(tmp_path)
    started.want(a=EXIT)
    async with at_work(started) as bench:
        await bench.until(lambda: bench.health.level() == "error")
        (item,) = bench.health.items()
        assert item.code == "worker.down"
        assert "exit status 9" in item.text
        assert bench.runner.restarts >= 5
        assert bench.runner.standing.entries["a"].refused_key == "", "it is the worker's trouble, not the definition's"
        assert bench.reports()["a"].state == "loading"
        bench.want(a=100)
        assert await bench.runner.settled(20)
        assert bench.health.level() == "ok"


async def test_a_definition_that_ends_only_the_successor_is_refused(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.want(b=EXIT)
    assert await bench.runner.settled(20)
    assert {n: r.state for n, r in bench.reports().items()} == {"a": "ready", "b": "failed"}
    assert bench.runner.restarts == 0


async def test_a_hanging_load_is_superseded_by_the_next_wish(bench: Bench) -> None:
    bench.want(a=HANG)
    await bench.until(lambda: bench.lines("start") and f"a:{HANG}" in bench.lines("start")[-1])
    bench.want(a=100)
    assert await bench.runner.settled(20)
    assert bench.reports()["a"].state == "ready"


async def test_a_load_without_end_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    monkeypatch.setattr(runner_module, "READY_TIMEOUT_S", 0.5)
    bench.want(a=HANG)
    assert await bench.runner.settled(20)
    assert bench.reports()["a"].state == "ready"
    assert "was not ready within" in bench.runner.standing.entries["a"].refused_why


async def test_a_silent_worker_is_replaced(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "SILENCE_S", 1.0)
    monkeypatch.setattr(runner_module, "LOOK_S", 0.2)
    bench.want(a=100)
    assert await bench.runner.settled(20)
    worker = bench.runner.worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGSTOP)
    await bench.until(lambda: bench.runner.worker not in (None, worker) and bench.runner.state() == "ready")
    assert worker.exited.result() == -signal.SIGKILL


async def test_a_service_without_its_model_waits_and_starts_when_it_comes(bench: Bench) -> None:
    bench.packages = {}
    bench.want(a=100)
    assert await bench.runner.settled(20)
    assert bench.runner.standing.missing == {"m"}
    assert bench.reports()["a"].state == "loading"
    bench.packages = {"m@1": bench.directory}
    bench.runner.changed()
    assert await bench.runner.settled(20)
    assert bench.reports()["a"].state == "ready"


async def test_a_newer_version_of_the_model_is_swapped_in(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.packages = {"m@1": bench.directory, "m@2": bench.directory}
    bench.runner.changed()
    assert await bench.runner.settled(20)
    assert bench.reports()["a"].model == "m@2"


async def test_a_removed_service_stops(bench: Bench) -> None:
    bench.want(a=100, b=100)
    assert await bench.runner.settled(20)
    bench.drop("a")
    assert await bench.runner.settled(20)
    assert set(bench.reports()) == {"b"}


async def test_without_memory_for_two_the_old_worker_ends_first(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.available(NEED + SPARE - (1 << 20))
    bench.want(a=120)
    assert await bench.runner.settled(20)
    order = [line.split()[0] for line in bench.log_path.read_text().splitlines()]
    assert [word for word in order if word in ("drain", "start")][-2:] == ["drain", "start"]


async def test_without_memory_for_its_model_a_service_is_refused_and_its_last_good_one_goes_on(
    bench: Bench,
) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    old, starts = bench.runner.worker, len(bench.lines("start"))
    bench.available(64 << 20)
    bench.packages["large@1"] = bench.directory
    for name in ("a", "b"):
        bench.store.apply(Change(put={name: definition(name, 100, "large")}))
    bench.runner.changed(by_hand=True)
    assert await bench.runner.settled(20)
    assert bench.runner.worker is old and len(bench.lines("start")) == starts, "nothing was even started"
    assert "MiB of memory" in bench.runner.standing.entries["a"].refused_why
    report = bench.reports()["b"]
    assert (report.state, "more than there is" in report.detail) == ("failed", True)
    assert bench.reports()["a"].state == "ready"
    running = bench.runner.standing.running("a")
    assert running is not None and running.last_good and running.ref == "m@1"
    assert any("MiB of memory" in event.text for event in bench.health.state().events)
    bench.available(8 << 30)
    bench.want(c=100)  # somebody changes something, but what was refused stays so until it is asked for anew
    assert await bench.runner.settled(20)
    assert bench.reports()["b"].state == "failed"
    bench.store.forgive()
    bench.runner.changed(by_hand=True)
    assert await bench.runner.settled(20)
    assert bench.reports()["b"].state == "ready"


async def test_what_has_run_before_is_started_with_little_memory_too(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.available(1 << 20)
    first = bench.runner.worker
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    await bench.until(lambda: bench.runner.worker is not first and bench.runner.state() == "ready")
    assert "worker.memory" in [event.code for event in bench.health.state().events]


async def test_a_model_without_a_service_is_served_beside_them_and_ends_alone(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.store.serve("m")
    bench.runner.changed(by_hand=True)
    assert await bench.runner.settled(20)
    name = model_entry("m")
    assert bench.configured[-1].models == ["m@1"] and len(bench.configured[-1].services) == 1
    assert bench.runner.standing.model_report(name).state == "ready"
    assert set(bench.reports()) == {"a"} and set(bench.runner.standing.planned) == {"a"}
    assert bench.store.models()[0].good_ref == "m@1"
    bench.packages["m@2"] = bench.directory  # the newest is meant
    bench.runner.changed(by_hand=True)
    assert await bench.runner.settled(20)
    assert bench.configured[-1].models == ["m@2"]
    assert bench.configured[-1].compare == {"a": "m@1"}
    assert bench.configured[-1].packages["m@1"] == str(bench.directory)
    bench.store.unserve("m")
    bench.runner.changed(by_hand=True)
    assert await bench.runner.settled(20)
    assert bench.configured[-1].models == []


async def test_a_model_without_a_service_that_fails_costs_no_swap(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    old = bench.runner.worker
    bench.packages[scripted_worker.BAD_MODEL] = bench.directory
    bench.store.serve("bad")
    bench.runner.changed(by_hand=True)
    assert await bench.runner.settled(20)
    assert bench.runner.worker is old
    assert bench.runner.standing.model_report(model_entry("bad")).detail == "it does not load"
    assert bench.reports()["a"].state == "ready"


async def test_a_model_that_a_client_wants_is_told_with_its_worker(bench: Bench) -> None:
    bench.want(a=scripted_worker.ASK)
    assert await bench.runner.settled(20)
    await bench.until(lambda: bench.wanted)
    message, worker = bench.wanted[0]
    assert message == ModelWanted(ticket=7, ref="m") and worker is bench.runner.worker
    worker.send(ModelDone(ticket=7))
    await bench.until(lambda: bench.lines("got ModelDone"))


async def test_what_a_worker_complains_of_ends_with_it_or_its_service(bench: Bench) -> None:
    def codes() -> list[str]:
        return [item.code for item in bench.health.items()]

    bench.want(a=TROUBLE, b=TROUBLE)
    await bench.until(lambda: sorted(codes()) == ["folder:a", "folder:b"])
    assert await bench.runner.settled(20)
    bench.want(a=TROUBLE, b=100)  # a swap: the successor complains of a again, of b it does not
    await bench.until(lambda: codes() == ["folder:a"])
    assert await bench.runner.settled(20)
    bench.drop("a")
    await bench.until(lambda: codes() == [])
    bench.want(a=TROUBLE)
    await bench.until(lambda: codes() == ["folder:a"])
    assert await bench.runner.settled(20)
    worker = bench.runner.worker
    assert worker is not None
    bench.want(b=FAIL)  # the one that is refused takes its own complaints with it, not those of the present one
    assert await bench.runner.settled(20)
    assert bench.runner.worker is worker and codes() == ["folder:a"]


async def test_a_loss_is_an_event_and_the_last_words_of_a_worker_stay_on_no_list(bench: Bench) -> None:
    bench.want(a=100)
    assert await bench.runner.settled(20)
    bench.want(a=150)
    said = bench.health.state
    await bench.until(lambda: {event.code for event in said().events} >= {"output-lost:/x", "last-words"})
    assert await bench.runner.settled(20)
    await bench.until(lambda: bench.health.items() == [])


async def test_messages_reach_the_worker(bench: Bench) -> None:
    assert not bench.runner.send(LinkChanged(link=Link()))
    bench.want(a=100)
    assert await bench.runner.settled(20)
    assert bench.runner.send(LinkChanged(link=Link()))
    await bench.until(lambda: bench.lines("got") == ["got LinkChanged"])
