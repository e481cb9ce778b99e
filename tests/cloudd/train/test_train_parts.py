from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudd.train.parts import FEWEST, counts, divide, merged
from edgekit.datasets.dataset import Dataset, DatasetError, LabelledBox, Picture


def made(labels: Sequence[str], parts: Sequence[str] = ("",), groups: int = 0) -> Dataset:
    pictures = tuple(
        Picture(
            f"{n}.png",
            f"{n:064x}",
            label,
            group=f"g{n % groups}" if groups else "",
            part=parts[n % len(parts)],
            width=9,
            height=9,
        )
        for n, label in enumerate(labels)
    )
    return Dataset(pictures, lambda picture: b"")


TWO = ["good", "bad"] * 150


@given(groups=st.integers(20, 60))
def test_a_group_never_stands_on_two_sides(groups: int) -> None:
    parts = divide(made(["good"] * 300 + ["bad"] * 300, groups=groups))
    sides = [{one.group for one in pictures} for _, pictures in parts.items()]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert sum(len(pictures) for _, pictures in parts.items()) == 600


def test_a_picture_stays_on_its_side_when_others_come() -> None:
    before, after = divide(made(TWO)), divide(made(TWO + ["good", "bad"] * 50))
    for (_, few), (_, many) in zip(before.items(), after.items(), strict=True):
        assert set(few) <= set(many)


def test_what_the_data_says_about_parts_is_followed_and_the_missing_part_comes_out_of_train() -> None:
    data = made(TWO, parts=("train", "train", "train", "train", "test", "test"))
    parts = divide(data)
    assert {one.sha256 for one in parts.test} == {one.sha256 for one in data.pictures if one.part == "test"}
    assert len(parts.train) + len(parts.val) == 200 and 10 < len(parts.val) < 45
    whole = divide(made(TWO, parts=("train", "train", "val", "val", "test", "test")))
    assert len(whole.train) == len(whole.val) == len(whole.test) == 100
    without_test = divide(made(TWO, parts=("train", "train", "train", "train", "val", "val")))
    assert len(without_test.val) == 100 and 20 < len(without_test.test) < 75


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (made(TWO, parts=("train", "valid")), '"valid" is unknown'),
        (made(TWO, parts=("train", "")), "others do not"),
        (made(TWO, parts=("val", "test")), "nothing to learn from"),
        (made(["good"] * 300), "tells at least two apart"),
        (made([*TWO, "odd"]), 'the label "odd" has too few pictures'),
        (made(TWO + [" "] * 40), "consists of spaces"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused_with_the_reason(data: Dataset, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        divide(data)


def test_the_refusal_of_a_rare_label_counts_what_each_part_has() -> None:
    parts = ("train", "train", "val", "val", "test", "test")
    labels = ["good", "bad"] * 60
    labels[0] = "odd"
    with pytest.raises(DatasetError, match="1 to learn from, 0 to choose by, 0 to judge by; at least 10, 1, 3"):
        divide(made(labels, parts=parts))
    assert list(FEWEST) == ["train", "val", "test"]


def test_merged_labels_make_another_dataset_of_the_same_pictures() -> None:
    data = made(["good", "open", "short"] * 60)
    one = merged(data, {"open": "bad", "short": "bad"})
    assert one.labels == ("bad", "good") and one.digest != data.digest and len(one.pictures) == 180
    assert counts(one.pictures) == {"bad": 120, "good": 60}
    assert merged(data, {}) is data
    with pytest.raises(DatasetError, match=r'no picture has the label "opne".*"good", "open", "short"'):
        merged(data, {"opne": "bad"})


def test_labels_of_boxes_are_merged_and_counted_too() -> None:
    boxes = (LabelledBox("open", 0, 0, 4, 4), LabelledBox("short", 4, 4, 8, 8))
    picture = msgspec.structs.replace(made(["x"]).pictures[0], label="", boxes=boxes)
    one = merged(Dataset((picture,), lambda picture: b""), {"open": "bad", "short": "bad"})
    assert counts(one.pictures) == {"bad": 2}
