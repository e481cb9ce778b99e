"""Dataset versions, their split and the formats of others."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.datasets.dataset import Dataset, DatasetError, LabelledBox, Picture, digest
from edgekit.datasets.formats import FORMATS, Format, read_dataset, recognise, write_dataset
from edgekit.datasets.parts import split
from edgekit.datasets.summary import summarise
from tests.support.models import picture

WHOLE: tuple[Format, ...] = ("folder", "csv", "coco")
BOXED: tuple[Format, ...] = ("csv", "coco", "voc", "yolo")


def named(number: int, group: str = "", label: str = "good", part: str = "") -> Picture:
    return Picture(f"{number}.jpg", hashlib.sha256(str(number).encode()).hexdigest(), label, None, group, part)


def write(root: Path, *files: tuple[str, float]) -> Path:
    for file, brightness in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(picture(brightness))
    return root


def boxed(tmp_path: Path) -> Dataset:
    write(tmp_path, ("1.png", 0.1), ("2.png", 0.2), ("3.png", 0.3))
    (tmp_path / "boxes.csv").write_text(
        "file,label,left,top,right,bottom,group,split\n"
        "1.png,short,1,2,10,12,a,train\n1.png,open,3.5,4,8,9.25,a,train\n2.png,,,,,,b,test\n3.png,open,0,0,4,4,b,test\n"
    )
    return read_dataset(tmp_path / "boxes.csv")


def whole(tmp_path: Path) -> Dataset:
    return read_dataset(write(tmp_path, ("good/1.png", 0.1), ("good/2.PNG", 0.2), ("bad one/3.png", 0.3)))


def contents(dataset: Dataset) -> set[tuple[object, ...]]:
    """What must survive any format that holds boxes: to a thousandth of a pixel."""
    return {
        (one.sha256, one.label, None if one.boxes is None else frozenset((b.label, *near(b)) for b in one.boxes))
        for one in dataset.pictures
    }


def near(box: LabelledBox) -> tuple[float, ...]:
    return tuple(round(side, 2) for side in (box.left, box.top, box.right, box.bottom))


numbers = st.sets(st.integers(0, 10_000), min_size=1, max_size=200)


@given(numbers, numbers)
def test_a_picture_never_changes_sides_when_others_join(some: set[int], others: set[int]) -> None:
    before, after = split([named(n) for n in some]), split([named(n) for n in some | others])
    assert all(set(before[part]) <= set(after[part]) for part in before)


@given(numbers)
def test_a_group_stands_on_one_side(some: set[int]) -> None:
    sides = split([named(n, f"board-{n % 30}") for n in some])
    assert sum(map(len, sides.values())) == len(some)
    seen = [{one.group for one in part} for part in sides.values()]
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_the_shares_are_kept_on_average() -> None:
    sides = split([named(n) for n in range(5000)], {"calibrate": 0.2, "judge": 0.8})
    assert 0.17 < len(sides["calibrate"]) / 5000 < 0.23


def test_parts_that_the_source_gives_are_followed_but_not_across_a_group() -> None:
    given_parts = [named(1, "a", part="train"), named(2, "b", part="test"), named(3, "a", part="train")]
    assert [one.file for one in split(given_parts)["test"]] == ["2.jpg"]
    with pytest.raises(DatasetError, match="stands in"):
        split([*given_parts, named(4, "a", part="test")])


def test_shares_that_are_no_whole_are_refused() -> None:
    with pytest.raises(DatasetError, match="add up"):
        split([named(1)], {"train": 0.5, "test": 0.6})


def test_the_digest_names_contents_and_labels_but_no_files_and_no_order() -> None:
    pictures = [named(n) for n in range(5)]
    renamed = [Picture(f"x/{one.file}", one.sha256, one.label) for one in reversed(pictures)]
    assert digest(pictures) == digest(renamed)
    box = LabelledBox("good", 0, 0, 1, 1)
    variants = [
        pictures,
        [named(0, label="bad"), *pictures[1:]],
        [named(0, "g"), *pictures[1:]],
        pictures[1:],
        [Picture("0.jpg", pictures[0].sha256, "", ()), *pictures[1:]],
        [Picture("0.jpg", pictures[0].sha256, "", (box,)), *pictures[1:]],
    ]
    assert len({digest(one) for one in variants}) == len(variants)


@pytest.mark.parametrize("form", WHOLE)
def test_labels_survive_a_format(form: Format, tmp_path: Path) -> None:
    before = whole(tmp_path / "in")
    write_dataset(before, tmp_path / "out", form)
    source = tmp_path / "out" / {"csv": "labels.csv", "coco": "coco.json"}.get(form, "")
    assert recognise(source) == form
    assert contents(read_dataset(source)) == contents(before)


@pytest.mark.parametrize("form", BOXED)
def test_boxes_survive_a_format(form: Format, tmp_path: Path) -> None:
    before = boxed(tmp_path / "in")
    write_dataset(before, tmp_path / "out", form)
    source = tmp_path / "out" / {"csv": "labels.csv", "coco": "coco.json"}.get(form, "")
    assert recognise(source) == form
    after = read_dataset(source)
    assert contents(after) == contents(before)
    assert Counter(one.part for one in after.pictures) == {"train": 1, "test": 2}


@pytest.mark.parametrize("form", ["csv", "coco"])
def test_groups_survive_where_the_format_has_them(form: Format, tmp_path: Path) -> None:
    before = boxed(tmp_path / "in")
    write_dataset(before, tmp_path / "out", form)
    after = read_dataset(tmp_path / "out" / {"csv": "labels.csv", "coco": "coco.json"}[form])
    assert after.digest == before.digest


def test_a_format_that_cannot_hold_the_labels_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot hold boxes"):
        write_dataset(boxed(tmp_path / "a"), tmp_path / "out", "folder")
    for form in ("voc", "yolo"):
        with pytest.raises(DatasetError, match="these pictures have none"):
            write_dataset(whole(tmp_path / "b"), tmp_path / "out", form)
    write(tmp_path / "full", ("x.png", 0.1))
    with pytest.raises(DatasetError, match="not empty"):
        write_dataset(whole(tmp_path / "b"), tmp_path / "full", "csv")


def test_the_same_picture_twice_counts_once_but_not_with_two_labels(tmp_path: Path) -> None:
    write(tmp_path, ("good/1.png", 0.1), ("good/2.png", 0.1))
    assert len(read_dataset(tmp_path).pictures) == 1
    write(tmp_path, ("bad/1.png", 0.1))
    with pytest.raises(DatasetError, match="same picture"):
        read_dataset(tmp_path)


def test_a_label_that_a_model_does_not_know_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r'"good".*did you mean "god"'):
        whole(tmp_path).check_labels(["bad one", "god"])
    whole(tmp_path / "again").check_labels(["bad one", "good"])


def test_a_picture_that_changed_is_not_used(tmp_path: Path) -> None:
    dataset = whole(tmp_path)
    (tmp_path / dataset.pictures[0].file).write_bytes(picture(0.9))
    with pytest.raises(DatasetError, match="changed"):
        dataset.read(dataset.pictures[0])


def test_a_summary_counts(tmp_path: Path) -> None:
    summary = summarise(boxed(tmp_path).pictures)
    assert (summary.pictures, summary.empty, summary.groups) == (3, 1, 2)
    assert summary.labels == {"open": 2, "short": 1}
    assert summary.parts == {"test": 2, "train": 1}
    assert summary.box_side[0] <= summary.box_side[1] <= summary.box_side[2]
    assert summarise([]).width == (0, 0, 0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file\n1.png\n", "no column"),
        ("file,label\n1.png\n", "incomplete"),
        ("file,label\n../1.png,a\n", "outside"),
        ("file,label\n/etc/passwd,a\n", "outside"),
        ("file,label\nC:\\1.png,a\n", "outside"),
        ("file,label\n2.png,a\n", "cannot be read"),
        ("file,label\nboxes.csv,a\n", "not a JPEG or PNG"),
        ('file,label\n1.png,"a\n', "is no CSV"),
        ("file,label,left,top,right,bottom\n1.png,a,x,0,1,1\n", "as numbers"),
        ("file,label,left,top,right,bottom\n1.png,a,nan,0,1,1\n", "not a number"),
        ("file,label,left,top,right,bottom\n1.png,a,5,0,5,1\n", "empty"),
        ("file,label,left,top,right,bottom\n1.png,a,5,0,5000,1\n", "outside of the picture"),
        ("file,label,left,top,right,bottom,group\n1.png,a,0,0,1,1,x\n1.png,a,0,0,2,2,y\n", "another group"),
        ("file,label\n", "no labelled pictures"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_reason(text: str, problem: str, tmp_path: Path) -> None:
    write(tmp_path, ("1.png", 0.1))
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DatasetError, match=problem):
        read_dataset(tmp_path / "boxes.csv")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "no COCO file"),
        ("[" * 100_000, "no COCO file"),
        ('{"images":[{"id":1}],"annotations":[],"categories":[]}', "file_name"),
        ('{"images":[{"id":1,"file_name":"../x.png"}],"annotations":[],"categories":[]}', "outside"),
        (
            '{"images":[],"annotations":[{"image_id":1,"category_id":7,"bbox":[0,0,1,1]}],"categories":[]}',
            "category 7",
        ),
        (
            '{"images":[{"id":1,"file_name":"1.png"}],"annotations":[{"image_id":1,"category_id":1},'
            '{"image_id":1,"category_id":1,"bbox":[0,0,1,1]}],"categories":[{"id":1,"name":"a"}]}',
            "not both",
        ),
        (
            '{"images":[{"id":1,"file_name":"1.png"}],"annotations":[{"image_id":1,"category_id":1},'
            '{"image_id":1,"category_id":1}],"categories":[{"id":1,"name":"a"}]}',
            "2 labels",
        ),
    ],
)
def test_a_coco_file_that_cannot_be_used_is_refused_with_the_reason(text: str, problem: str, tmp_path: Path) -> None:
    write(tmp_path, ("1.png", 0.1))
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DatasetError, match=problem):
        read_dataset(tmp_path / "x.json")


def test_crowds_are_no_objects_and_pictures_may_lie_in_images(tmp_path: Path) -> None:
    write(tmp_path, ("images/1.png", 0.1))
    (tmp_path / "x.json").write_text(
        '{"images":[{"id":1,"file_name":"1.png","lot":7}],"annotations":['
        '{"image_id":1,"category_id":1,"bbox":[0,0,1,1],"iscrowd":1},{"image_id":1,"category_id":1,"bbox":[2,2,2,2]}],'
        '"categories":[{"id":1,"name":"a"}]}'
    )
    (one,) = read_dataset(tmp_path / "x.json", "lot").pictures
    assert one.boxes == (LabelledBox("a", 2, 2, 4, 4),)
    assert (one.file, one.group) == ("images/1.png", "7")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<annotation>", "no XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "entities"),
        ("<annotation><filename>../1.png</filename></annotation>", "outside"),
        ("<annotation><filename>2.png</filename></annotation>", "not in JPEGImages"),
        ("<annotation><filename>1.png</filename><object><name>a</name></object></annotation>", "bndbox/xmin"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    write(tmp_path, ("JPEGImages/1.png", 0.1))
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "1.xml").write_text(text)
    with pytest.raises(DatasetError, match=problem):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    "names", ["names: [a, 'b']", "names:\n- a\n- b\nnc: 2", 'names:\n  1: b\n  0: "a"\n', "nc: 2\nnames:\n  - a\n  - b"]
)
def test_the_labels_of_yolo_are_read_in_every_usual_way(names: str, tmp_path: Path) -> None:
    write(tmp_path, ("images/train/1.png", 0.1), ("images/val/2.png", 0.2))
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "1.txt").write_text("1 0.5 0.5 0.5 0.5\n0 0 0 0.5 0 0.5 0.5 0 0.5\n")
    (tmp_path / "data.yaml").write_text(names)
    one, other = sorted(read_dataset(tmp_path).pictures, key=lambda picture: picture.file)
    assert one.boxes is not None and [box.label for box in one.boxes] == ["b", "a"]
    assert one.boxes[1].right == one.width / 2
    assert (other.boxes, other.part) == ((), "val")


@pytest.mark.parametrize(
    ("line", "problem"),
    [("0 0.5 0.5", "neither"), ("x 0 0 1 1", "is no box"), ("7 0.5 0.5 1 1", "number 7"), ("0 9 9 1 1", "outside")],
)
def test_a_line_of_yolo_that_cannot_be_used_is_refused(line: str, problem: str, tmp_path: Path) -> None:
    write(tmp_path, ("images/1.png", 0.1))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text(line)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DatasetError, match=problem):
        read_dataset(tmp_path)


def test_what_is_not_there_is_refused_with_what_could_be() -> None:
    with pytest.raises(DatasetError, match="one folder a label"):
        read_dataset(Path("/nonexistent/place"))
    assert len(FORMATS) == 5
