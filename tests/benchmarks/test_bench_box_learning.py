"""What the box-learning benchmark does to boards and rows; its figures are for a quiet machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import box_learning
from benchmarks.box_learning import NEW, means, plot
from benchmarks.box_learning_boards import Board, arriving, load, tiles
from edgekit.datasets.dataset import LabelledBox

SIDE = 640


def board(number: int, part: str = "train", new: int = 2) -> Board:
    """A white board with black defects: `new` of the withheld kind in a row, and a short below."""
    image = np.full((SIDE, SIDE), 255, np.uint8)
    boxes = [LabelledBox(NEW, 40.0 + 100 * at, 40.0, 60.0 + 100 * at, 60.0) for at in range(new)]
    boxes.append(LabelledBox("short", 40.0, 400.0, 70.0, 420.0))
    for one in boxes:
        image[int(one.top) : int(one.bottom), int(one.left) : int(one.right)] = 0
    return Board(f"board{number}", part, image, np.full_like(image, 255), tuple(boxes))  # type: ignore[arg-type]


def test_a_withheld_defect_is_taken_out_of_the_picture_and_of_its_boxes() -> None:
    before, after = board(0), board(0).without(NEW)
    assert (before.image[40:60, 40:60] == 0).all() and (after.image[30:70, 30:170] == 255).all()
    assert [one.label for one in after.boxes] == ["short"] and (after.image[400:420, 40:70] == 0).all()
    one = before.without(NEW, keep=1)
    assert one.count(NEW) == 1 and (one.image[40:60, 40:60] == 0).all() and (one.image[40:60, 140:160] == 255).all()


def test_what_touches_another_defect_leaves_that_whole() -> None:
    whole = board(0, new=1)
    near = Board(
        whole.name, "train", whole.image, whole.template, (*whole.boxes, LabelledBox("spur", 50.0, 40.0, 60.0, 60.0))
    )
    after = near.without(NEW).image
    assert (after[40:60, 50:60] == 0).all() and (after[40:60, 40:50] == 255).all()


@pytest.mark.parametrize("count", [0, 3, 4, 8])
def test_exactly_so_many_boxes_arrive_and_those_that_judge_keep_theirs(count: int) -> None:
    boards = [*(board(number) for number in range(4)), board(9, "test")]
    arrived = list(arriving(boards, NEW, count, seed=1))
    assert sum(one.count(NEW) for one, _ in arrived if one.part == "train") == count
    assert [one.count(NEW) for one, _ in arrived if one.part == "test"] == [2]
    assert all(shows == (one.count(NEW) > 0) for one, shows in arrived)
    order = [one.name for one, _ in arriving(boards, NEW, count, seed=2)]
    assert order != [one.name for one, _ in arrived] or count == 0


def test_tiles_show_every_box_in_their_own_pixels_and_some_of_nothing() -> None:
    found = tiles([board(0)])
    shown = [one for one in found.pictures if one.boxes]
    assert {box.label for one in shown for box in one.boxes or ()} == {NEW, "short"}
    assert sum(not one.boxes for one in found.pictures) <= 2 and len(shown) >= 2
    first = next(one for one in found.pictures if one.file == "board0/0-0")
    assert (first.boxes or ())[0] == LabelledBox(NEW, 40.0, 40.0, 60.0, 60.0)
    assert all(one.group == "board0" and one.part == "train" for one in found.pictures)


def row(rung: str, labels: int, seed: int, recall: float, accepted: bool = True) -> dict[str, Any]:
    figures = {"old_before": 0.6, "old_after": 0.5, "false_before": 1.0, "false_after": 2.0, "seconds": 3.0}
    return {"rung": rung, "labels": labels, "seed": seed, "new_recall": recall, "accepted": accepted, **figures}


def test_the_means_are_over_the_seeds_and_the_picture_begins_at_the_model_as_it_was() -> None:
    rows = [row("full", 20, 0, 0.2), row("full", 50, 0, 0.6), row("full", 20, 1, 0.4, False), row("full", 50, 1, 0.8)]
    found = {one["case"]: one for one in means(rows)}
    assert found["full, 20 boxes"]["new_recall"] == pytest.approx(0.3)
    assert found["full, 20 boxes"]["accepted"] == 0.5 and found["full, 50 boxes"]["accepted"] == 1.0
    drawn = plot(rows)
    assert drawn.startswith("<svg") and "full" in drawn and NEW in drawn


@pytest.mark.skipif(not os.environ.get("EDGED_REAL_DATA"), reason="needs the real pictures")
def test_the_real_boards_stand_on_one_side_each_with_as_many_new_boxes_as_the_benchmark_says() -> None:
    boards = load(Path(os.environ["EDGED_REAL_DATA"]))
    parts = {part: [one for one in boards if one.part == part] for part in ("train", "val", "test")}
    assert {part: len(mine) for part, mine in parts.items()} == {"train": 36, "val": 8, "test": 16}
    assert sum(one.count(NEW) for one in parts["train"]) == box_learning.ALL
