from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudd.compress.dataset import Dataset, Picture, digest, read_dataset, split
from cloudd.compress.errors import DatasetError
from tests.support.models import picture

LABELS = ["bad", "good"]


def named(number: int, group: str = "") -> Picture:
    return Picture(f"{number}.jpg", "good", hashlib.sha256(str(number).encode()).hexdigest(), group)


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


def test_the_digest_names_contents_and_labels_but_no_files_and_no_order() -> None:
    pictures = [named(n) for n in range(5)]
    renamed = [Picture(f"x/{one.file}", one.label, one.sha256, one.group) for one in reversed(pictures)]
    assert digest(pictures) == digest(renamed)
    other_label = [Picture(pictures[0].file, "bad", pictures[0].sha256), *pictures[1:]]
    assert len({digest(pictures), digest(other_label), digest(pictures[1:]), digest([*pictures[:4], named(9)])}) == 4


def test_a_directory_has_one_folder_a_label(tmp_path: Path) -> None:
    write(tmp_path, ("good/1.png", 0.1), ("good/2.PNG", 0.2), ("bad/3.png", 0.3), (".cache/4.png", 0.4))
    (tmp_path / "good" / "notes.txt").write_text("none")
    data = read_dataset(tmp_path, LABELS)
    assert Counter(one.label for one in data.pictures) == {"good": 2, "bad": 1}
    assert data.read(data.pictures[0]) == (tmp_path / data.pictures[0].file).read_bytes()


def test_a_csv_names_files_labels_and_groups(tmp_path: Path) -> None:
    write(tmp_path, ("p/1.png", 0.1), ("p/2.png", 0.2))
    (tmp_path / "list.csv").write_text("file,label,board,more\np/1.png,good,a,x\np/2.png,bad,b,y\n")
    data = read_dataset(tmp_path / "list.csv", LABELS, "board")
    assert [(one.file, one.label, one.group) for one in data.pictures] == [
        ("p/1.png", "good", "a"),
        ("p/2.png", "bad", "b"),
    ]
    assert read_dataset(tmp_path / "list.csv", LABELS).digest != data.digest


def test_the_same_picture_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path, ("good/1.png", 0.5), ("good/2.png", 0.5))
    assert len(read_dataset(tmp_path, LABELS).pictures) == 1


def test_one_picture_with_two_labels_is_an_error_that_names_both_files(tmp_path: Path) -> None:
    write(tmp_path, ("good/1.png", 0.5), ("bad/2.png", 0.5))
    with pytest.raises(DatasetError, match=r'"good/1.png" and "bad/2.png" are the same picture'):
        read_dataset(tmp_path, LABELS)


def test_a_label_that_the_model_does_not_know_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, ("godo/1.png", 0.5))
    with pytest.raises(DatasetError, match='"godo", which the model does not know; did you mean "good"'):
        read_dataset(tmp_path, LABELS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,tag\np/1.png,good\n", 'no column "label"'),
        ("file,label\n../1.png,good\n", "outside of its folder"),
        ("file,label\n/etc/passwd,good\n", "outside of its folder"),
        ("file,label\np/1.png\n", "line 2 .* is incomplete"),
        ("file,label\np/9.png,good\n", '"p/9.png" cannot be read'),
        ('file,label\n"p/1.png,good\n', "no CSV"),
        ("file,label\n", "has no pictures"),
    ],
)
def test_a_csv_that_is_wrong_says_where(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, ("p/1.png", 0.1))
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path / "list.csv", LABELS)


def test_what_is_no_list_of_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_dataset(tmp_path / "nothing", LABELS)
    with pytest.raises(DatasetError, match="has no pictures"):
        read_dataset(tmp_path, LABELS)
    with pytest.raises(DatasetError, match='no column "board"'):
        read_dataset(tmp_path, LABELS, "board")
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_dataset(tmp_path / "x.csv", LABELS)


def test_a_file_that_is_no_whole_picture_is_named(tmp_path: Path) -> None:
    write(tmp_path, ("good/1.png", 0.5))
    whole = (tmp_path / "good" / "1.png").read_bytes()
    (tmp_path / "good" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r'"good/1.png" cannot be used'):
        read_dataset(tmp_path, LABELS)


def test_a_picture_that_changes_while_it_is_used_is_an_error(tmp_path: Path) -> None:
    data: Dataset = read_dataset(write(tmp_path, ("good/1.png", 0.5)), LABELS)
    write(tmp_path, ("good/1.png", 0.6))
    with pytest.raises(DatasetError, match=r'"good/1.png" changed'):
        data.read(data.pictures[0])
    (tmp_path / "good" / "1.png").unlink()
    with pytest.raises(DatasetError, match=r'"good/1.png" cannot be read'):
        data.read(data.pictures[0])
