"""Dataset versions: fixed, pinned, exported in every format, imported again; what is damaged is left out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from sample_bench import Bench, boxed, by_import, by_operator, png

from edged.samples.importing import ImportReport, import_dataset
from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.samples.store import SampleStore
from edged.samples.versions import VersionError
from edgekit.datasets.dataset import Dataset, DatasetError, Picture
from edgekit.datasets.formats import Format, read_dataset, write_dataset
from edgekit.datasets.parts import split

SOLDER = Filter(service="solder")


def brought(store: SampleStore, dataset: Dataset, at: float = 5.0) -> ImportReport:
    def add(new: NewSample, picture: bytes, label: LabelRecord) -> bool:
        return store.add(new, picture, label).new

    return import_dataset(dataset, "solder", "data.csv", at, add, lambda picture: None)


def test_a_version_never_changes_and_says_what_is_in_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    one = bench.add(1, label=by_operator("good"), serial="B1")
    two = bench.add(2, label=by_import("bad"), group="B2")
    bench.add(3)
    bench.add(4, label=by_operator(Label(unusable=True)))
    info = bench.store.versions.make("v1", SOLDER)
    assert info.pictures == 2 and info.summary.labels == {"bad": 1, "good": 1} and info.summary.groups == 2
    bench.store.label(one, by_operator("bad"))
    bench.add(5, label=by_operator("good"))
    fixed = {picture.file: (picture.label, picture.group) for picture in bench.store.versions.pictures("v1")}
    assert fixed == {one: ("good", "B1"), two: ("bad", "B2")}
    dataset, left_out = bench.store.versions.dataset("v1")
    assert dataset.digest == info.digest and left_out == []
    assert {dataset.read(picture) for picture in dataset.pictures} == {png(1), png(2)}
    later = bench.store.versions.make("v2", SOLDER)
    assert later.digest != info.digest and [one.name for one in bench.store.versions.all()] == ["v2", "v1"]


def test_the_same_samples_and_labels_have_the_same_digest(tmp_path: Path) -> None:
    digests = set()
    for place in ("a", "b"):
        bench = Bench(tmp_path / place)
        for number in (3, 1, 2) if place == "a" else (1, 2, 3):
            bench.add(number, label=by_operator("good"))
        digests.add(bench.store.versions.make("v1", SOLDER).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("bad", ["", "V1", "../v", ".v", "a/b", "x" * 65])
def test_names_that_are_no_names_are_refused(tmp_path: Path, bad: str) -> None:
    bench = Bench(tmp_path)
    bench.add(1, label=by_operator("good"))
    with pytest.raises(VersionError, match="no name"):
        bench.store.versions.make(bad, SOLDER)


def test_what_cannot_be_made_says_why(tmp_path: Path) -> None:
    versions = Bench(tmp_path).store.versions
    bench = Bench(tmp_path)
    with pytest.raises(VersionError, match="no samples"):
        versions.make("v1", SOLDER)
    with pytest.raises(VersionError, match="name it"):
        versions.make("v1", Filter())
    bench.add(1, label=by_operator("good"))
    bench.add(2, label=by_operator(boxed("crack")))
    with pytest.raises(VersionError, match="1 of the samples have boxes and 1 a label"):
        versions.make("v1", SOLDER)
    assert versions.make("v1", SOLDER, "boxes").summary.labels == {"crack": 1}
    assert versions.make("v2", SOLDER, "labels").summary.labels == {"good": 1}
    with pytest.raises(VersionError, match="already"):
        versions.make("v1", SOLDER, "labels")
    with pytest.raises(VersionError, match=r"versions: v\d, v\d"):
        versions.show("v9")


def test_what_a_version_names_is_never_evicted_expired_or_removed_until_it_is_deleted(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=10, days=10.0)
    named = {bench.add(number, source="random", label=by_import("good")) for number in range(4)}
    bench.store.versions.make("v1", SOLDER)
    for number in range(100, 130):
        bench.add(number, label=by_operator("good"))
    bench.now += 20 * 86_400
    bench.store.maintain()
    assert bench.ids == named == bench.files
    with pytest.raises(ValueError, match="edged datasets delete v1 first"):
        bench.store.remove(named)
    bench.store.versions.delete("v1")
    bench.store.maintain()
    assert bench.ids == set() and bench.store.versions.all() == []


def test_near_duplicates_without_a_group_are_never_parted(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    alike = [bench.add(number, label=by_operator("good"), hash_=1 << 63) for number in range(12)]
    apart = [
        bench.add(number, label=by_operator("good"), hash_=number * 0x0123_4567_89AB_CDEF) for number in range(20, 28)
    ]
    named = bench.add(50, label=by_operator("good"), hash_=1 << 63, serial="B1")
    bench.store.versions.make("v1", SOLDER)
    groups = {picture.file: picture.group for picture in bench.store.versions.pictures("v1")}
    assert len({groups[id] for id in alike}) == 1 and groups[alike[0]].startswith("near-")
    assert groups[named] == "B1" and {groups[id] for id in apart if id not in alike} == {""}
    parts = split(bench.store.versions.pictures("v1"))
    holders = [name for name, pictures in parts.items() if any(picture.file in alike for picture in pictures)]
    assert len(holders) == 1


def test_a_damaged_picture_is_left_out_of_a_version_and_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    one, two = (bench.add(number, label=by_operator("good")) for number in (1, 2))
    bench.store.versions.make("v1", SOLDER)
    bench.file(one).write_bytes(bench.file(one).read_bytes()[:-20])
    dataset, left_out = bench.store.versions.dataset("v1")
    assert left_out == []
    with pytest.raises(DatasetError, match="left out if you try again"):
        [dataset.read(picture) for picture in dataset.pictures]
    dataset, left_out = bench.store.versions.dataset("v1")
    assert left_out == [one] and [picture.file for picture in dataset.pictures] == [two]
    assert bench.codes == ["warning:samples.damaged"]


@pytest.mark.parametrize("form", ["coco", "voc", "yolo", "csv"])
def test_boxes_survive_export_and_import(tmp_path: Path, form: Format) -> None:
    bench = Bench(tmp_path / "a")
    bench.add(1, label=by_operator(boxed("crack", "bridge")), serial="B1")
    bench.add(2, label=by_operator(boxed()), serial="B1")
    info = bench.store.versions.make("v1", SOLDER)
    write_dataset(bench.store.versions.dataset("v1")[0], tmp_path / "out", form)
    source = {"coco": tmp_path / "out/coco.json", "csv": tmp_path / "out/labels.csv"}.get(form, tmp_path / "out")
    other = Bench(tmp_path / "b")
    assert brought(other.store, read_dataset(source)) == ImportReport(added=2, known=0)
    again = other.store.versions.make("v1", SOLDER)
    assert again.summary.labels == info.summary.labels and again.summary.empty == 1
    assert form in ("voc", "yolo") or again.digest == info.digest, "these two know no groups"


def test_labels_survive_export_and_import_with_groups_and_parts(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "a")
    pictures = [Picture(f"{n}.png", _sha(png(n)), label, None, f"B{n % 2}", part, 32, 24) for n, label, part in ROWS]
    dataset = Dataset(tuple(pictures), lambda picture: png(int(picture.file.split(".")[0])))
    assert brought(bench.store, dataset) == ImportReport(added=4, known=0)
    info = bench.store.versions.make("v1", SOLDER)
    assert info.digest == dataset.digest and info.summary.parts == {"test": 2, "train": 2}
    write_dataset(bench.store.versions.dataset("v1")[0], tmp_path / "out", "csv")
    with (tmp_path / "out/labels.csv").open() as file:
        assert {row["group"] for row in csv.DictReader(file)} == {"B0", "B1"}
    other = Bench(tmp_path / "b")
    brought(other.store, read_dataset(tmp_path / "out/labels.csv", "group"))
    assert other.store.versions.make("v1", SOLDER).digest == info.digest


ROWS = [(0, "good", "test"), (1, "bad", "train"), (2, "good", "test"), (3, "bad", "train")]


def test_an_import_can_be_repeated_and_an_operators_word_stands(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    dataset = Dataset(tuple(Picture(f"{n}.png", _sha(png(n)), "good") for n in range(3)), lambda p: png(int(p.file[0])))
    id = bench.add(0, label=by_operator("bad"))
    assert brought(bench.store, dataset) == ImportReport(added=2, known=1)
    assert brought(bench.store, dataset, at=6.0) == ImportReport(added=0, known=3)
    detail = bench.store.sample(id)
    assert [record.kind for record in detail.labels] == ["operator", "import"], "once, however often it is imported"
    assert detail.sample.label == by_operator("bad")


def test_the_real_solder_joints_go_in_and_out(tmp_path: Path, real_data: Path) -> None:
    from edged.samples.thumbprint import difference_hash

    whole = read_dataset(real_data / "solder-tht" / "labels.csv", "board")
    boards = sorted({picture.group for picture in whole.pictures})[:12]
    dataset = Dataset(tuple(picture for picture in whole.pictures if picture.group in boards), whole.fetch)
    bench = Bench(tmp_path / "state")
    report = import_dataset(
        dataset, "solder", "labels.csv", 5.0, lambda *sample: bench.store.add(*sample).new, difference_hash
    )
    assert report.added == len(dataset.pictures) > 30
    info = bench.store.versions.make("joints", SOLDER)
    assert info.digest == dataset.digest and info.summary.groups == len(boards)
    parts = split(bench.store.versions.pictures("joints"))
    sides = [{picture.group for picture in part} for part in parts.values()]
    assert not any(one & two for one in sides for two in sides if one is not two), "by board, never by picture"


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
