"""The rung `cloud` as the supervisor sees it: allowed by the definition or never, waited for without a process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from learning_bench import DEFINITION, FIRST, ROOT, SERVICE, Bench, at
from test_learning_desk import QUICK
from test_learning_facts import means_of, outside, stats

from edged.learning.facts import CLOUD_LABELS
from edged.learning.settings import never_asks
from edgekit.services import Service, parse_service

CLOUD = 'rungs = ["cloud"]' + QUICK
KNOWN = ("dark", "bright")


def service(learning: str = 'rungs = ["head", "cloud"]', more: str = "") -> Service:
    return parse_service(f'name = "solder"\nmodel = "small"\n{more}\n[learning]\n{learning}\n', "test")


async def labelled(bench: Bench) -> None:
    """Enough of what the model knows, and a new class that starts a job."""
    for place, label in enumerate(KNOWN):
        await bench.label(CLOUD_LABELS, label, first=100 * (place + 1))
    await bench.label(5, "bridge")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (service(""), 'does not name "cloud"'),
        (service('rungs = ["head"]'), 'does not name "cloud"'),
        (service(more='may_leave = "nothing"'), "no picture may leave"),
        (service(more='task = "anomaly"'), "cannot be trained"),
    ],
)
def test_a_definition_that_does_not_let_pictures_leave_rules_it_out_with_the_reason(asked: Service, told: str) -> None:
    assert told in never_asks(asked)
    enough = outside(stats=stats({"good": 50, "hole": 50}), link_up=True)
    assert told in means_of(asked, enough).never["cloud"]


@pytest.mark.parametrize(
    "more", ["", 'task = "detection"', '[pipeline.tiles]\nwidth = 64\nheight = 64\naggregate = "mean"']
)
def test_classifiers_detectors_and_tiles_may_all_be_retrained_at_cloudd(more: str) -> None:
    assert never_asks(service(more=more)) == ""


def test_it_needs_labels_of_every_class_and_the_link() -> None:
    few = means_of(service(), outside(stats=stats({"good": 50, "hole": 19}), labels=("good", "hole"), link_up=True))
    assert few.never["cloud"] == 'it needs 20 labels of every class, "hole" has 19'
    none = means_of(service(), outside(stats=stats({"good": 50}), labels=("good", "hole"), link_up=True))
    assert '"hole" has 0' in none.never["cloud"]
    enough = stats({"good": 50, "hole": 20})
    away = means_of(service(), outside(stats=enough, labels=("good", "hole"), link_up=False))
    assert "cloud" not in away.never and "link" in away.later["cloud"]
    there = means_of(service(), outside(stats=enough, labels=("good", "hole"), link_up=True))
    assert "cloud" not in there.never and "cloud" not in there.later


async def test_while_cloudd_works_no_process_waits_and_then_its_candidate_goes_the_ordinary_road(
    tmp_path: Path,
) -> None:
    async with at(tmp_path, CLOUD) as bench:
        bench.script.write_text("away\naway\ngood")
        await labelled(bench)
        await bench.until_ordered(1)
        await bench.until("working")
        assert bench.orders[0].rung == "cloud"
        while "at cloudd" not in bench.state_of.sentence:
            await bench.look(seconds=1.0)
            await asyncio.sleep(0.02)
        await bench.look(5, 10.0)
        assert "The job goes on in" in bench.state_of.sentence and "larger network" in bench.state_of.sentence
        assert len(bench.orders) == 1, "nobody asks before the time has come"
        await bench.end()  # the supervisor ends and starts while cloudd works
        bench.start()
        await bench.look(1, 10.0)
        assert len(bench.orders) == 1
        await bench.look(1, 290.0)
        await bench.until_ordered(2)
        assert bench.orders[1] == bench.orders[0]
        while len(bench.orders) < 3:
            await bench.look(1, 60.0)
            await asyncio.sleep(0.02)
        await bench.until("shadow")
        assert bench.desk.learned()[SERVICE].shadow == FIRST
        assert await bench.events() == ["started", "accepted"]


async def test_a_definition_that_forbids_it_ends_the_job_that_is_under_way(tmp_path: Path) -> None:
    async with at(tmp_path, CLOUD) as bench:
        bench.script.write_text("wait")
        await labelled(bench)
        await bench.until_ordered(1)
        bench.define('may_leave = "nothing"\n' + DEFINITION.format(learning=CLOUD))
        await bench.look()
        (_, refused, *_) = await bench.records()
        assert refused.event == "refused" and "no picture may leave" in refused.sentence
        await bench.look(5, 3600.0)
        assert len(bench.orders) == 1 and bench.state_of.stage == "waiting"
        assert bench.models.refs() == [ROOT] and await bench.samples.versions() == []


async def test_a_cloudd_that_never_comes_to_an_end_is_given_up_after_a_week(tmp_path: Path) -> None:
    async with at(tmp_path, CLOUD) as bench:
        bench.script.write_text("away")
        await labelled(bench)
        await bench.until("working")
        while "at cloudd" not in bench.state_of.sentence:
            await bench.look(1, 1.0)
            await asyncio.sleep(0.02)
        bench.now += 6.9 * 86_400.0
        await bench.until_ordered(2)
        while "at cloudd" not in bench.state_of.sentence:
            await bench.look(1, 1.0)
            await asyncio.sleep(0.02)
        assert await bench.events() == ["started"]
        bench.now += 0.2 * 86_400.0
        while len(await bench.events()) < 2:
            await bench.look(1, 1.0)
            await asyncio.sleep(0.02)
        failed = (await bench.records())[1]
        assert failed.event == "failed" and "7.0 days did not suffice: cloudd trains" in failed.sentence
