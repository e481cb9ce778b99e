"""What people are shown of learning: what there is to learn from, what is needed, and how jobs ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from learning_bench import FIRST, at
from support.models import make_package

from edged.learning.bodies import Stock
from edged.learning.settings import JUDGE_SHARE, labels_wanted, never_trains
from edged.train.lessons import SHARES, LessonError, check_service
from edgekit.services import Learning, LearningJudging, parse_service

TILES = "[pipeline.tiles]\nwidth = 64\nheight = 64\nworst = ['bad']\n"
TEXT = 'name = "solder"\nmodel = "small"\n'


async def test_what_there_is_to_learn_from_is_counted_by_what_the_model_knows(tmp_path: Path) -> None:
    async with at(tmp_path, 'start = "operator"') as bench:
        await bench.label(3, "dark")
        await bench.label(2, "bridge", first=3)
        await bench.look()
        state = bench.state_of
        assert state.stock == Stock(kept=5, labelled=5, known=3)
        assert (state.wanted, state.keep, state.never) == (1700, "none", "")


async def test_a_job_is_counted_once_by_how_it_ended(tmp_path: Path) -> None:
    async with at(tmp_path, 'rungs = ["head"]') as bench:
        bench.script.write_text("bad")
        await bench.label(5, "bridge")
        await bench.until("working")
        await bench.until("waiting")
        assert (await bench.events()).count("refused") == 2, "of the candidate, and of the job"
        assert bench.state_of.jobs == {"refused": 1}


async def test_a_model_that_gives_way_while_it_is_on_trial_ends_its_job_as_superseded(tmp_path: Path) -> None:
    async with at(tmp_path, 'rungs = ["head"]') as bench:
        await bench.label(5, "bridge")
        await bench.until("shadow")
        assert bench.state_of.jobs == {} and bench.state_of.candidate == FIRST
        bench.models.add(make_package(tmp_path / "newer", version="2").root)
        await bench.look()
        assert bench.state_of.jobs == {"superseded": 1}


def test_the_share_that_judges_is_that_of_the_training_process() -> None:
    assert SHARES["judge"] == JUDGE_SHARE


@pytest.mark.parametrize(("items", "wanted"), [(500, 1700), (1, 4), (29, 97), (30, 100), (31, 110), (3000, 10_000)])
def test_the_labels_that_a_judgement_needs_are_rounded_up_to_two_digits(items: int, wanted: int) -> None:
    assert labels_wanted(Learning(judging=LearningJudging(items=items))) == wanted


def test_what_only_recalibrates_needs_no_labels() -> None:
    assert labels_wanted(Learning(rungs=["recalibrate"])) == 0
    assert labels_wanted(Learning(rungs=["recalibrate", "batchnorm"])) == 1700


@pytest.mark.parametrize("more", ["", 'task = "detection"\n', TILES])
def test_the_supervisor_says_never_exactly_where_a_job_would_refuse(more: str) -> None:
    service = parse_service(TEXT + more, "a test")
    try:
        check_service(service)
    except LessonError:
        assert never_trains(service)
    else:
        assert not never_trains(service)
