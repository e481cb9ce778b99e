from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudd.compress.dataset import read_dataset, split
from edgekit.datasets.dataset import DatasetError, Picture
from tests.support.models import picture

LABELS = ["bad", "good"]


def named(number: int, group: str = "") -> Picture:
    return Picture(f"{number}.jpg", hashlib.sha256(str(number).encode()).hexdigest(), "good", group=group)


def write(root: Path, *files: tuple[str, float]) -> Path:
    for file, brightness in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(picture(brightness))
    return root


numbers = st.sets(st.integers(0, 10_000), min_size=1, max_size=200)


@given(numbers, numbers)
def test_a_picture_never_changes_sides_when_others_join(some: set[int], others: set[int]) -> None:
    before = split([named(n) for n in some], 10_000, 10_000)
    after = split([named(n) for n in some | others], 10_000, 10_000)
    assert set(before.calibration) <= set(after.calibration)
    assert set(before.held_out) <= set(after.held_out)


@given(numbers, st.integers(1, 20), st.integers(1, 20))
def test_the_sides_share_no_picture_and_no_group(some: set[int], calibration: int, held_out: int) -> None:
    pictures = [named(n, f"board-{n % 30}") for n in some]
    sides = split(pictures, calibration, held_out)
    assert not {one.group for one in sides.calibration} & {one.group for one in sides.held_out}
    assert len(sides.calibration) <= calibration and len(sides.held_out) <= held_out


def test_about_a_fifth_calibrates() -> None:
    sides = split([named(n) for n in range(5000)], 10_000, 10_000)
    assert len(sides.calibration) + len(sides.held_out) == 5000
    assert 0.17 < len(sides.calibration) / 5000 < 0.23


def test_labelled_pictures_are_read_in_the_usual_formats(tmp_path: Path) -> None:
    write(tmp_path, ("good/1.png", 0.1), ("good/2.png", 0.2), ("bad/3.png", 0.3))
    data = read_dataset(tmp_path, LABELS)
    assert Counter(one.label for one in data.pictures) == {"good": 2, "bad": 1}
    (tmp_path / "list.csv").write_text("file,label,lot\ngood/1.png,good,a\nbad/3.png,bad,b\n")
    assert {one.group for one in read_dataset(tmp_path / "list.csv", LABELS, "lot").pictures} == {"a", "b"}


def test_a_label_that_the_model_does_not_know_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, ("godo/1.png", 0.5))
    with pytest.raises(DatasetError, match='"godo", which the model does not know; did you mean "good"'):
        read_dataset(tmp_path, LABELS)


def test_boxes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, ("1.png", 0.5))
    (tmp_path / "boxes.csv").write_text("file,label,left,top,right,bottom\n1.png,good,0,0,1,1\n")
    with pytest.raises(DatasetError, match="has boxes"):
        read_dataset(tmp_path / "boxes.csv", LABELS)
