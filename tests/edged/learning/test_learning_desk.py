"""From labels to a model that decides, and back: the desk with real stores and real (scripted) training processes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest
from learning_bench import DEFINITION, FIRST, ROOT, SERVICE, at
from support.models import make_package

from edged.api import ApiError
from edged.plan import Learned
from edgekit.learning.records import Fact
from edgekit.learning.trial import Expected, Verdict
from edgekit.messages import Recalibrate
from edgekit.messages.learning import TrainDone

QUICK = """
[learning.shadow]
items = 10
audits = 2
[learning.probation]
items = 20
hours = 0.01
"""
HEAD = 'rungs = ["head", "last-blocks"]' + QUICK


async def test_labels_of_a_new_class_make_a_candidate_that_looks_on_decides_and_is_kept(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(4, "bridge")
        await bench.look()
        assert bench.state_of.stage == "waiting" and not bench.orders
        await bench.label(1, "bridge", first=4)
        await bench.until("shadow")
        (order,) = bench.orders
        assert (order.rung, order.base_ref, order.dataset) == ("head", ROOT, "learning.solder-1")
        assert f"{order.name}@{order.version}" == FIRST
        assert bench.desk.learned() == {SERVICE: Learned(ROOT, "", FIRST)}
        assert bench.line.planned[SERVICE].ref == ROOT and bench.line.planned[SERVICE].shadow == FIRST
        assert bench.desk.holds() == {ROOT: [SERVICE], FIRST: [SERVICE]}
        bench.shadow(items=9, agreeing=9, audits=9, lost=0, gained=1)
        await bench.look()
        assert bench.state_of.sentence == "A candidate looks on: 9 of 10 pictures and 9 of 2 audits so far."
        bench.shadow(items=10, agreeing=10, audits=9, lost=0, gained=1)
        await bench.look()
        assert bench.state_of.stage == "probation"
        assert bench.line.planned[SERVICE].ref == FIRST and not bench.line.planned[SERVICE].shadow
        assert bench.line.changes == 2
        await bench.look()  # from here on it counts
        bench.count(inspected=25)
        await bench.look(seconds=40)
        assert bench.state_of.stage == "waiting" and bench.state_of.learned == FIRST
        assert bench.line.planned[SERVICE].ref == FIRST
        assert await bench.events() == ["started", "accepted", "promoted", "kept", "kept"]
        assert all(record.facts for record in (await bench.records())[1:])
        assert bench.desk.holds() == {ROOT: [SERVICE], FIRST: [SERVICE]}
        assert [version.name for version in await bench.samples.versions()] == ["learning.solder-1"]
        await bench.look(5, 3600.0)
        assert len(bench.orders) == 1, "the same labels never start the same job again"


async def test_what_is_worse_on_held_out_pictures_never_sees_the_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with at(tmp_path, 'rungs = ["head"]') as bench:
        bench.script.write_text("bad")
        await bench.label(5, "bridge")
        await bench.until("working")
        await bench.until("waiting")
        await bench.look()
        assert await bench.events() == ["started", "refused", "refused", "exhausted"]
        assert bench.models.refs() == [ROOT]
        assert await bench.samples.versions() == []
        assert not list((bench.state / "learning" / "jobs").iterdir())
        assert bench.desk.learned() == {} and bench.desk.holds() == {}


async def test_a_model_that_differs_from_the_audits_is_taken_back_and_the_one_before_decides(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        await bench.desk.go(SERVICE, "anna")
        assert bench.state_of.stage == "probation"
        await bench.look()
        bench.count(inspected=5, errors=3)
        await bench.look()
        assert bench.desk.learned() == {}
        assert bench.line.planned[SERVICE].ref == ROOT
        await bench.look()
        assert bench.models.refs() == [ROOT], "the package of a model that was taken back is removed"
        records = await bench.records()
        assert [record.event for record in records][2:4] == ["promoted", "rolled-back"]
        assert "it broke 3 times" in records[3].sentence


async def test_a_candidate_that_does_not_become_ready_is_taken_back_with_the_reason(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        await bench.desk.go(SERVICE, "anna")
        bench.line.broken.add(FIRST)
        await bench.look()
        assert bench.line.planned[SERVICE].ref == ROOT
        assert "does not run: it says no" in (await bench.records())[3].sentence


async def test_a_candidate_that_the_plan_has_refused_is_taken_back(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        await bench.desk.go(SERVICE, "anna")
        choice = bench.line.planned[SERVICE]
        bench.desired.mark_refused(SERVICE, choice.key, "the worker ended with signal SIGSEGV")
        assert bench.line.planned[SERVICE].ref == ROOT, "the line goes on before anybody looks"
        await bench.look()
        assert bench.desk.learned() == {}
        assert "does not start: the worker ended with signal SIGSEGV" in (await bench.records())[3].sentence


async def test_a_worker_that_dies_is_held_against_the_candidate_that_decides_in_it_and_not_one_that_looks_on(
    tmp_path: Path,
) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        for _ in range(5):
            bench.desk.worker_died()
            await bench.look()
        assert bench.state_of.stage == "shadow"
        await bench.desk.go(SERVICE, "anna")
        for _ in range(3):
            assert bench.state_of.stage == "probation"
            bench.desk.worker_died()
            await bench.look()
        assert (await bench.events())[3] == "rolled-back"
        assert bench.line.planned[SERVICE].ref == ROOT


async def test_a_shadow_that_fails_is_tried_again_by_a_swap_and_refused_in_the_end(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        bench.shadow(failure="there is too little memory for it")
        await bench.look()
        assert bench.line.swaps == 1
        await bench.look(3)
        assert bench.line.swaps == 1, "not again before its time"
        await bench.look(2, 700.0)
        assert bench.line.swaps == 3
        await bench.look(1, 700.0)
        assert "could not look on: there is too little memory for it" in (await bench.records())[2].sentence


async def test_a_new_version_of_the_definitions_model_ends_what_was_learned(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        await bench.desk.go(SERVICE, "anna")
        await bench.desk.go(SERVICE, "anna")
        assert bench.state_of.learned == FIRST
        bench.models.add(make_package(tmp_path / "second", version="2").root)
        assert bench.line.planned[SERVICE].ref == "brightness@2"
        await bench.look(2)
        assert (bench.state_of.base, bench.state_of.learned) == ("brightness@2", "")
        assert (await bench.events())[-1] == "superseded"
        assert bench.models.refs() == ["brightness@2", ROOT]


async def test_a_job_ends_when_another_model_decides(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        bench.script.write_text("wait")
        await bench.label(5, "bridge")
        await bench.until_ordered(1)
        bench.models.add(make_package(tmp_path / "second", version="2").root)
        await bench.look(2)
        assert (await bench.events())[:2] == ["started", "superseded"]
        assert bench.state_of.base == "brightness@2"


async def test_an_operator_starts_stops_and_takes_back(tmp_path: Path) -> None:
    async with at(tmp_path, 'start = "operator"' + QUICK) as bench:
        bench.script.write_text("wait")
        await bench.label(5, "bridge")
        await bench.look(2)
        assert not bench.orders, "nothing starts by itself"
        assert (
            "A new LDA head is tried, because anna asked for it"
            in (await bench.desk.start(SERVICE, "head", "anna")).text
        )
        with pytest.raises(ApiError, match="at it already"):
            await bench.desk.start(SERVICE, None, "anna")
        await bench.until_ordered(1)
        assert "berta stopped it" in (await bench.desk.stop(SERVICE, "berta")).text
        await bench.look(2)
        assert bench.state_of.stage == "waiting", "what was stopped does not begin again"
        with pytest.raises(ApiError, match="nothing to take back"):
            await bench.desk.revert(SERVICE, "anna")
        with pytest.raises(ApiError, match="no candidate on trial"):
            await bench.desk.go(SERVICE, "anna")
        bench.script.write_text("good")
        await bench.desk.start(SERVICE, "head", "anna")
        await bench.until("shadow")
        await bench.desk.go(SERVICE, "anna")
        assert "because anna says so" in (await bench.desk.go(SERVICE, "anna")).text
        kept = bench.state_of.learned
        assert kept and bench.line.planned[SERVICE].ref == kept
        assert f"{kept} was taken back" in (await bench.desk.revert(SERVICE, "berta")).text
        await bench.look(2)
        assert bench.line.planned[SERVICE].ref == ROOT and bench.models.refs() == [ROOT]


async def test_a_second_candidate_is_made_of_the_first_one_and_a_rollback_returns_to_it(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        begun = bench.now
        await bench.desk.go(SERVICE, "anna")
        await bench.desk.go(SERVICE, "anna")
        await bench.desk.start(SERVICE, "head", "anna")
        await bench.until("shadow")
        second = "brightness.solder@1-2"
        order = bench.orders[1]
        assert (order.base_ref, f"{order.name}@{order.version}") == (FIRST, second)
        assert order.earlier_before is not None and order.earlier_before <= begun
        assert bench.desk.learned() == {SERVICE: Learned(ROOT, FIRST, second)}
        await bench.desk.go(SERVICE, "anna")
        assert bench.line.planned[SERVICE].ref == second
        await bench.desk.stop(SERVICE, "berta")
        assert bench.line.planned[SERVICE].ref == FIRST
        await bench.look()
        assert bench.models.refs() == [ROOT, FIRST]


async def test_a_gate_is_recalibrated_and_the_certificate_settles_its_cause(tmp_path: Path) -> None:
    async with at(tmp_path) as bench:
        bench.gate(alarms=1, calibrated=0.2)
        await bench.look(2)
        assert bench.line.sent == [Recalibrate(service=SERVICE)]
        bench.gate(alarms=1, calibrated=None)
        await bench.look(3)
        assert bench.state_of.stage == "working"
        bench.gate(alarms=1, calibrated=0.25)
        await bench.look()
        assert await bench.events() == ["started", "kept"]
        await bench.look(3, 3600.0)
        assert len(bench.line.sent) == 1


async def test_a_gate_that_calibrates_already_is_not_told_again(tmp_path: Path) -> None:
    async with at(tmp_path) as bench:
        bench.gate(alarms=1, calibrated=None)
        await bench.look(2)
        assert bench.state_of.stage == "working" and not bench.line.sent


async def test_a_gate_that_certifies_nothing_leads_up_the_ladder(tmp_path: Path) -> None:
    async with at(tmp_path, 'rungs = ["recalibrate", "head"]' + QUICK) as bench:
        bench.script.write_text("wait")
        await bench.label(5, "dark")
        bench.gate(alarms=1, calibrated=None)
        await bench.look(2)
        bench.gate(alarms=1, calibrated=None, looks=1)
        await bench.look()
        await bench.until_ordered(1)
        assert bench.orders[0].rung == "head"
        assert (await bench.events())[:3] == ["started", "refused", "started"]


async def test_only_one_service_trains_at_a_time(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        bench.script.write_text("wait")
        other = DEFINITION.format(learning='rungs = ["head"]').replace('"solder"', '"other"')
        from edged.desired import Change

        bench.desired.apply(Change(put={"other": other}))
        await bench.label(5, "bridge", service="other")
        await bench.label(5, "bridge")
        await bench.until_ordered(1)
        await bench.look(3)
        assert [order.service for order in bench.orders] == ["other"]
        assert "other learns now; one job at a time" in bench.state_of.sentence
        await bench.desk.stop("other", "anna")
        await bench.until_ordered(2)
        assert bench.orders[1].service == SERVICE


async def test_a_process_that_dies_is_started_again_and_fails_in_the_end(tmp_path: Path) -> None:
    async with at(tmp_path, 'rungs = ["head"]') as bench:
        bench.script.write_text("crash\nbabble\ncrash")
        await bench.label(5, "bridge")
        await bench.until("working")
        await bench.until("waiting")
        assert [order.job for order in bench.orders] == [1, 1, 1]
        assert len({order.scratch for order in bench.orders}) == 1, "it goes on where it stood"
        record = (await bench.records())[1]
        assert record.event == "failed" and "its process broke: it ended with signal SIGKILL" in record.sentence


async def test_a_full_disk_stops_the_job_for_a_while_with_a_sentence(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        bench.script.write_text("full\ngood")
        await bench.label(5, "bridge")
        await bench.until_ordered(1)
        async with asyncio.timeout(10):
            while "goes on" not in bench.state_of.sentence:
                await bench.look(1, 0.1)
                await asyncio.sleep(0.02)
        assert "the disk is full" in bench.state_of.sentence
        await bench.look(3, 1.0)
        assert len(bench.orders) == 1
        bench.now += 700.0
        await bench.until("shadow")
        assert [order.job for order in bench.orders] == [1, 1]


async def test_a_rung_that_cannot_help_leads_to_the_next_one(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        bench.script.write_text("refused\ngood")
        await bench.label(50, "bridge")
        await bench.until("shadow")
        assert [order.rung for order in bench.orders] == ["head", "last-blocks"]


async def test_a_job_that_is_under_way_goes_on_in_the_next_run(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        bench.script.write_text("wait\ngood")
        await bench.label(5, "bridge")
        await bench.until_ordered(1)
        async with asyncio.timeout(10):
            while not bench.state_of.step:
                await asyncio.sleep(0.02)
        await bench.end()
        bench.start()
        await bench.until("shadow")
        assert [order.job for order in bench.orders] == [1, 1]
        assert bench.orders[0] == bench.orders[1]


async def test_a_shadow_counts_over_runs_of_the_supervisor(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        bench.shadow(items=6, agreeing=6, audits=1)
        await bench.look(1, 100.0)
        await bench.end()
        bench.start()
        await bench.look()
        assert bench.state_of.stage == "shadow"
        bench.shadow(items=3, agreeing=3, audits=1)
        await bench.look()
        tally = bench.state_of.shadow
        assert tally is not None and (tally.items, tally.audits) == (9, 2)
        bench.shadow(items=4, agreeing=4, audits=1)
        await bench.look()
        assert bench.state_of.stage == "probation"


async def test_a_removed_service_takes_everything_with_it(tmp_path: Path) -> None:
    from edged.desired import Change

    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        bench.desired.apply(Change(remove=[SERVICE]))
        await bench.look(3)
        assert bench.desk.states() == [] and bench.desk.learned() == {}
        assert bench.models.refs() == [ROOT]
        assert await bench.samples.versions() == []
        with pytest.raises(ApiError, match="no service 'solder'"):
            bench.desk.state(SERVICE)


async def test_without_the_table_nothing_is_learned_but_what_was_kept_goes_on(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        await bench.desk.go(SERVICE, "anna")
        await bench.desk.go(SERVICE, "anna")
        bench.define('name = "solder"\nmodel = "brightness"\n')
        await bench.look()
        assert bench.state_of.start == "off" and bench.line.planned[SERVICE].ref == FIRST
        with pytest.raises(ApiError, match="does not learn"):
            await bench.desk.start(SERVICE, None, "anna")
        await bench.desk.revert(SERVICE, "anna")
        assert bench.line.planned[SERVICE].ref == ROOT


async def test_a_trial_ends_with_its_table(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        bench.define('name = "solder"\nmodel = "brightness"\n')
        await bench.look(2)
        assert (await bench.events())[2:] == ["refused", "refused"]
        assert bench.desk.learned() == {} and bench.models.refs() == [ROOT]


async def test_the_package_of_a_candidate_that_somebody_removed_is_missed(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        bench.models.remove(FIRST)
        await bench.look()
        assert f"the package {FIRST} is gone" in (await bench.records())[2].sentence


def offered(ref: str, directory: Path, digest: str, accepted: bool = True) -> TrainDone:
    fact = Fact(name="accuracy", value=0.0, passed=accepted, text="by 600 items it is as good")
    verdict = Verdict(accepted=accepted, reason="" if accepted else "refused: worse", dataset="d", facts=[fact])
    return TrainDone(
        directory=str(directory), ref=ref, digest=digest, seconds=60.0, verdict=verdict, expected=Expected()
    )


async def test_a_candidate_from_a_federation_goes_on_trial_at_once_and_is_recorded_as_such(tmp_path: Path) -> None:
    async with at(tmp_path, QUICK) as bench:
        reserved = await bench.desk.reserve(SERVICE)
        assert (reserved.name, reserved.version, reserved.base_ref) == ("brightness.solder", "1-1", ROOT)
        assert (await bench.desk.reserve(SERVICE)).version == "1-2", "a name is given once"
        package = make_package(tmp_path / "merged", reserved.name, reserved.version, labels=["dark", "bright"])
        done = offered(package.ref, package.root, package.digest)
        with pytest.raises(ApiError, match="decides no longer"):
            await bench.desk.offer(SERVICE, "brightness@0", done)
        with pytest.raises(ApiError, match="cannot be used"):
            await bench.desk.offer(SERVICE, ROOT, offered(package.ref, package.root, "0" * 64))
        await bench.desk.offer(SERVICE, ROOT, done)
        assert bench.state_of.stage == "shadow"
        assert bench.state_of.rung == "learning together with other devices"
        with pytest.raises(ApiError, match="try again later"):
            await bench.desk.offer(SERVICE, ROOT, done)
        await bench.desk.go(SERVICE, "anna")
        await bench.desk.go(SERVICE, "anna")
        assert bench.line.planned[SERVICE].ref == package.ref
        records = await bench.records()
        assert [record.event for record in records] == ["offered", "accepted", "promoted", "kept", "kept"]
        assert {record.cause for record in records} == {"federation"}
        await bench.look(3)
        assert bench.state_of.learned == package.ref


async def test_a_refused_candidate_from_a_federation_is_recorded_and_nothing_else(tmp_path: Path) -> None:
    async with at(tmp_path, QUICK) as bench:
        await bench.desk.offer(SERVICE, ROOT, offered("brightness.solder@1-1", tmp_path, "0" * 64, accepted=False))
        assert await bench.events() == ["offered", "refused", "refused"]
        assert bench.models.refs() == [ROOT]


async def test_what_cannot_be_stored_does_not_count_and_is_decided_again(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        full = "CREATE TRIGGER full BEFORE INSERT ON places BEGIN SELECT RAISE(ABORT, 'no space left'); END"
        with contextlib.closing(sqlite3.connect(bench.state / "learning" / "learning.db")) as database:
            database.execute(full)
        await bench.label(5, "bridge")
        await bench.look(3)
        assert not bench.orders and bench.state_of.stage == "waiting"
        (item,) = bench.health.items()
        assert item.code == "learning.waits" and "no space left" in item.text
        with contextlib.closing(sqlite3.connect(bench.state / "learning" / "learning.db")) as database:
            database.execute("DROP TRIGGER full")
        await bench.until("shadow")
        assert not bench.health.items()
        assert await bench.events() == ["started", "accepted"]


async def test_a_record_of_a_newer_release_stops_learning_and_nothing_else(tmp_path: Path) -> None:
    async with at(tmp_path, HEAD) as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        await bench.end()
        with contextlib.closing(sqlite3.connect(bench.state / "learning" / "learning.db")) as database:
            database.execute("PRAGMA user_version=99")
        bench.start()
        assert [item.code for item in bench.health.items()] == ["learning.state"]
        assert bench.desk.learned() == {} and bench.line.planned[SERVICE].ref == ROOT
        with pytest.raises(ApiError, match="cannot be used"):
            await bench.desk.start(SERVICE, None, "anna")
        loop = asyncio.create_task(bench.desk.run())
        await asyncio.sleep(0.1)
        assert not loop.done(), "it does not end again and again"
        loop.cancel()
