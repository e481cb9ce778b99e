"""The sample store: what is kept, seen again, labelled, queued, evicted, removed; damage and keys."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from sample_bench import BLOCK, KEK, MIB, OTHER_KEK, Bench, boxed, by_cloud, by_import, by_operator, facts, opinion, png

from edged.collab.sealing import SealError
from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample, Opinion, SampleError, counting
from edged.samples.store import SamplesFull
from edgekit.datasets.dataset import LabelledBox
from edgekit.vision.sniff import ImageError


def test_a_picture_comes_back_as_it_was_and_nothing_of_it_is_readable_on_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    picture = png(1, 5000)
    added = bench.store.add(facts(1, serial="B7", cloud="bad"), picture)
    assert added.new and bench.store.picture(added.id) == picture
    sample = bench.store.sample(added.id).sample
    assert (sample.width, sample.height, sample.serial, sample.group) == (32, 24, "B7", "B7")
    assert sample.edge == opinion("good") and sample.cloud == opinion("bad", model="large@1")
    content = bench.file(added.id).read_bytes()
    assert b"IHDR" not in content and b"good" not in content
    assert bench.file(added.id).stat().st_mode & 0o777 == 0o600
    assert sample.bytes == 2 * BLOCK == bench.store.stats().bytes


def test_the_same_bytes_twice_are_one_sample_with_more_provenance(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = bench.store.add(facts(1, source="random", serial="A"), png(1))
    again = bench.store.add(facts(2, source="asked", serial="B", cloud="bad"), png(1))
    assert first.id == again.id and first.new and not again.new
    detail = bench.store.sample(first.id)
    assert [(one.sample_id, one.serial, one.source) for one in detail.sightings] == [
        ("D1", "A", "random"),
        ("D2", "B", "asked"),
    ]
    assert detail.sample.source == "asked" and detail.sample.serial == "A" and detail.sample.cloud is not None
    assert bench.store.stats().items == 1 and bench.store.stats().counters == {"kept": 1, "repeated": 1}


def test_sightings_of_bytes_that_come_for_ever_are_bounded(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in range(105):
        id = bench.store.add(facts(number), png(1)).id
    assert len(bench.store.sample(id).sightings) == 100
    assert bench.store.sample(id).sightings[-1].sample_id == "D104"


def test_the_same_picture_in_two_services_is_two_samples(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    one = bench.store.add(facts(1, service="helmet"), png(1)).id
    two = bench.store.add(facts(1, service="vest"), png(1)).id
    bench.store.label(one, by_operator("on"))
    bench.store.remove([one])
    assert bench.store.picture(two) == png(1) and bench.store.sample(two).labels == []


def test_near_duplicates_are_marked_with_the_first_of_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = bench.add(1, hash_=0xFFFF_0000_FFFF_0000)
    near = bench.add(2, hash_=0xFFFF_0000_FFFF_0007)
    of_near = bench.add(3, hash_=0xFFFF_0000_FFFF_0007)
    far = bench.add(4, hash_=0xFFFF_0000_FFFF_F000)
    elsewhere = bench.add(5, hash_=0xFFFF_0000_FFFF_0000, service="vest")
    marks = {id: bench.store.sample(id).sample.near for id in (first, near, of_near, far, elsewhere)}
    assert marks == {first: "", near: first, of_near: first, far: "", elsewhere: ""}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"service": ""}, "belongs to a service"),
        ({"serial": "x" * 257}, "serial"),
        ({"group": "a\nb"}, "group"),
        ({"captured_at": float("nan")}, "time of capture"),
        ({"tags": ("",)}, "tags"),
        ({"difference_hash": 1 << 64}, "64 bits"),
        ({"edge": Opinion(label="x", score=float("inf"), margin=0.1, model="m@1")}, "number that is none"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    bench = Bench(tmp_path)
    values = {"service": "solder", "source": "asked", "captured_at": 1.0, **change}
    with pytest.raises(SampleError, match=words):
        bench.store.add(NewSample(**values), png(1))  # type: ignore[arg-type]
    assert not bench.files


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for bad in (b"", b"GIF89a", png(1)[:-10]):
        with pytest.raises(ImageError):
            bench.store.add(facts(1), bad)
    assert not bench.files and not bench.ids


# --- labels -----------------------------------------------------------------------------------------------------------


def test_the_newest_label_of_the_highest_authority_counts_and_none_is_ever_lost(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1)
    told: list[tuple[LabelRecord, str]] = [
        (by_cloud("a", 0.5, None), ""),  # no certified threshold
        (by_cloud("b", 0.5, 0.5), ""),  # not above it
        (by_cloud("c", 0.6, 0.5), "c"),
        (by_import("d"), "d"),
        (by_cloud("e", 0.9, 0.5), "d"),
        (by_operator("f"), "f"),
        (by_import("g"), "f"),
        (by_operator("h"), "h"),
    ]
    for record, expected in told:
        sample = bench.store.label(id, record)
        assert (sample.label.label.label if sample.label is not None else "") == expected
    assert bench.store.sample(id).labels == [record for record, _ in told]


def test_counting_needs_no_store() -> None:
    assert counting([]) is None
    assert counting([by_cloud("a", 0.5, None)]) is None


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (by_operator(Label()), "one of three"),
        (by_operator(Label(label="a", unusable=True)), "one of three"),
        (by_operator(Label(label="a", boxes=())), "one of three"),
        (by_operator("a", name=""), "author"),
        (by_operator("a\x1b[2J"), "label"),
        (by_operator(Label(boxes=(LabelledBox("a", 1, 1, 1, 5),))), "empty"),
        (by_operator(Label(boxes=(LabelledBox("a", 1, 1, 40, 5),))), "outside"),
        (by_operator(Label(boxes=(LabelledBox("a", 1, 1, float("nan"), 5),))), "not a number"),
        (by_operator("a", at=float("inf")), "numbers"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path: Path, record: LabelRecord, words: str) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1)
    with pytest.raises(SampleError, match=words):
        bench.store.label(id, record)
    assert bench.store.sample(id).labels == []


def test_a_late_answer_makes_a_sample_disputed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1, source="audit", margin=0.9)
    assert bench.store.queue("solder", 10) == []
    assert bench.store.answered("solder", "D1", opinion("bad", model="large@1"))
    assert not bench.store.answered("solder", "D2", opinion("bad"))
    assert not bench.store.answered("vest", "D1", opinion("bad"))
    assert [one.id for one in bench.store.queue("solder", 10)] == [id]
    assert bench.store.sample(id).sample.source == "disputed"


# --- the queue --------------------------------------------------------------------------------------------------------


def test_the_queue_brings_the_most_useful_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for number in range(100, 140):  # "good" is no rare class
        bench.add(number, source="random")
    easy = bench.add(1, margin=0.9)
    close = bench.add(2, margin=0.1, hash_=1 << 40)
    twin = bench.add(3, margin=0.1, hash_=1 << 40)
    rare = bench.add(4, margin=0.1, says="crack")
    disputed = bench.add(5, margin=0.1, cloud="bad", source="disputed")
    doubtful = bench.add(8, margin=0.3, source="doubtful")
    done = bench.add(6, margin=0.0)
    bench.store.label(done, by_operator("good"))
    imported = bench.add(7, margin=0.5)
    bench.store.label(imported, by_import("good"))
    order = [one.id for one in bench.store.queue("solder", 10)]
    assert order == [disputed, rare, close, doubtful, imported, easy, twin]
    assert [one.id for one in bench.store.queue("solder", 2)] == [disputed, rare]
    assert bench.store.queue("vest", 10) == []


def test_searching_and_numbers(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    a = bench.add(1, source="random")
    b = bench.add(2, says="bad", hash_=5)
    c = bench.add(3, says="bad", hash_=5)
    bench.store.label(b, by_operator("bad"))
    bench.store.label(c, by_operator(Label(unusable=True)))
    bench.store.tag(a, add=["night"])

    def found(**which: object) -> list[str]:
        return [one.id for one in bench.store.select(Filter(**which), 10)]  # type: ignore[arg-type]

    assert found() == [c, b, a]
    assert found(source="random") == found(tag="night") == found(label="good") == [a]
    assert found(labelled=True) == [c, b] and found(labelled=False) == [a]
    assert found(since=1_700_000_002.0, until=1_700_000_003.0) == [b] and found(service="vest") == []
    bench.store.tag(a, remove=["night"])
    assert found(tag="night") == []
    stats = bench.store.stats("solder")
    assert stats.items == 3 and stats.sources == {"asked": 2, "random": 1} and stats.labelled == {"operator": 2}
    assert stats.labels == {"bad": 1} and stats.unusable == 1 and stats.near == 1
    assert stats.oldest_at == 1_700_000_001.0 and stats.counters == {"kept": 3}


def test_an_id_may_be_shortened_as_long_as_it_is_clear(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    ids = [bench.add(number) for number in range(20)]
    assert bench.store.find(ids[3][:12]) == ids[3]
    for bad in ("", "zz", "%", ids[3] + "0", "../x"):
        with pytest.raises(KeyError, match="sample begins"):
            bench.store.find(bad)


# --- room -------------------------------------------------------------------------------------------------------------


def test_the_quota_gives_up_the_least_valuable_and_keeps_labels_and_rare_classes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=30)
    labelled = [bench.add(number, source="random", label=by_operator("good")) for number in range(3)]
    rare = bench.add(10, source="random", says="crack")
    for number in range(100, 200):
        bench.add(number, source="random", margin=0.9)
    assert {*labelled, rare} <= bench.ids and len(bench.ids) <= 30
    assert bench.store.stats().counters["evicted"] >= 74
    assert bench.files == bench.ids, "evicted files are gone"
    assert not bench.codes, "a full quota is no trouble"


def test_when_nothing_is_worth_less_a_sample_is_refused_and_that_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, count=3)
    for number in range(3):
        bench.add(number, label=by_operator("good"))
    with pytest.raises(SamplesFull, match="quota"):
        bench.add(9)
    assert bench.codes == ["warning:samples.full"] and bench.store.stats().counters["refused"] == 1
    bench.add(10, label=by_operator("good"))
    assert len(bench.ids) == 3, "the oldest of equals made room"
    bench.store.maintain()
    with pytest.raises(SamplesFull):
        bench.add(11)
    bench.store.maintain()
    assert bench.codes == ["warning:samples.full"], "it does not come and go with every minute"
    bench.store.maintain()
    assert bench.codes[-1] == "ok:samples.full"


def test_a_quota_of_bytes_counts_blocks_of_the_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quota=20 * BLOCK)
    for number in range(40):
        bench.add(number, size=3000)
        assert bench.store.stats().bytes <= 20 * BLOCK
    assert 0 < len(bench.ids) <= 20


def test_age_removes_samples_and_an_unset_clock_does_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path, days=10.0)
    bench.now = 100.0  # 1970: the clock has not been set yet
    early = bench.add(1)
    bench.now = 1_800_000_000.0
    late = bench.add(2)
    bench.store.maintain()
    assert bench.ids == {early, late}
    bench.now += 9 * 86_400
    newest = bench.add(3)
    bench.now += 1.1 * 86_400
    bench.store.maintain()
    assert bench.ids == {newest} == bench.files


def test_removal_is_real(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1, label=by_operator("good"))
    path = bench.file(id)
    assert bench.store.remove([id, "unknown"]) == 1
    assert not path.exists() and bench.ids == set()
    with pytest.raises(KeyError):
        bench.store.picture(id)
    again = Bench(tmp_path)
    assert again.ids == set() and again.store.stats().items == 0
    assert again.store.index.usage("solder") == (0, 0) and again.store.index.count_of_class("solder", ["good"]) == 0
    back = again.add(1)
    assert back == id and again.store.sample(id).labels == [], "no label outlives its sample"


# --- damage and keys --------------------------------------------------------------------------------------------------


def test_a_damaged_file_is_reported_and_left_out_and_heals_when_the_picture_comes_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id, other = bench.add(1, label=by_operator("good")), bench.add(2)
    content = bytearray(bench.file(id).read_bytes())
    content[-1] ^= 1
    bench.file(id).write_bytes(content)
    with pytest.raises(SealError, match="damaged"):
        bench.store.picture(id)
    assert bench.codes == ["warning:samples.damaged"]
    assert bench.store.sample(id).sample.state == "damaged"
    assert [one.id for one in bench.store.queue("solder", 9)] == [other]
    bench.store.add(facts(3), png(1))
    assert bench.store.picture(id) == png(1)
    assert bench.store.sample(id).sample.state == "kept" and len(bench.store.sample(id).labels) == 1
    bench.store.maintain()
    assert bench.codes[-1] == "ok:samples.damaged"


def test_a_file_that_went_missing_is_reported_and_one_that_is_restored_works_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1)
    path = bench.file(id)
    aside = tmp_path / "aside"
    path.rename(aside)
    bench.store.close()
    bench = Bench(tmp_path)
    assert bench.codes == ["warning:samples.damaged"] and bench.store.stats().damaged == 1
    bench.store.close()
    aside.rename(path)
    bench = Bench(tmp_path)
    assert not bench.codes and bench.store.picture(id) == png(1)


def test_a_file_under_another_name_or_of_another_device_does_not_open(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    one, two = bench.add(1), bench.add(2)
    bench.file(two).write_bytes(bench.file(one).read_bytes())
    with pytest.raises(SealError):
        bench.store.picture(two)
    bench.store.close()
    stranger = Bench(tmp_path, device="DEVICE-B")
    with pytest.raises(SealError):
        stranger.store.picture(one)


def test_a_lost_key_is_said_and_a_key_that_comes_back_opens_everything(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1, label=by_operator("good"))
    bench.store.close()
    bench = Bench(tmp_path, kek=OTHER_KEK)
    assert bench.codes == ["error:samples.wrong-key"] and "key-encryption key" in bench.events[0].text
    assert bench.store.sample(id).sample.state == "other-key" and bench.store.stats().other_key == 1
    with pytest.raises(SealError, match="another key"):
        bench.store.picture(id)
    fresh = bench.add(2)
    assert [one.id for one in bench.store.queue("solder", 9)] == [fresh]
    bench.store.use_key(KEK)
    assert bench.store.picture(id) == png(1) and bench.store.sample(fresh).sample.state == "other-key"
    assert bench.store.remove([fresh, id]) == 2 and not bench.files
    assert bench.codes[-1] == "ok:samples.wrong-key"


def test_a_file_without_a_row_that_does_not_open_is_shown_and_healed_by_the_same_picture(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1, label=by_operator("good"))
    bench.store.close()
    for path in tmp_path.glob("index.db*"):
        path.unlink()
    bench = Bench(tmp_path, kek=OTHER_KEK)
    assert bench.store.sample(id).sample.state == "other-key" and bench.store.stats("solder").items == 0
    for change in (lambda: bench.store.label(id, by_operator("bad")), lambda: bench.store.tag(id, add=["x"])):
        with pytest.raises(SampleError, match="nothing can be said about it"):
            change()
    assert bench.add(1) == id and bench.store.picture(id) == png(1)
    assert bench.store.stats("solder").items == 1 == bench.store.stats().items


def test_a_key_that_comes_back_is_found_by_upkeep(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1)
    bench.store.close()
    bench = Bench(tmp_path, kek=OTHER_KEK)
    bench.store._find_key = lambda: KEK
    bench.store.maintain()
    assert bench.store.picture(id) == png(1) and bench.codes == ["error:samples.wrong-key", "ok:samples.wrong-key"]


def test_a_damaged_index_is_rebuilt_from_the_files_with_labels_and_versions(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    one = bench.add(1, label=by_import("good"), hash_=7, serial="B1")
    two = bench.add(2, hash_=6)
    bench.store.label(one, by_operator("bad"))
    bench.store.label(two, by_operator(boxed("bridge")))
    bench.store.versions.make("v1", Filter(service="solder"), "labels")
    before = bench.store.sample(one)
    fixed = bench.store.versions.pictures("v1")
    bench.store.close()
    for path in tmp_path.glob("index.db*"):
        path.unlink()
    (tmp_path / "index.db").write_bytes(b"not a database" * 1000)
    bench = Bench(tmp_path)
    assert bench.codes == ["warning:samples.index-rebuilt"]
    assert bench.store.sample(one) == before and bench.store.sample(two).labels == [by_operator(boxed("bridge"))]
    assert bench.store.versions.pictures("v1") == fixed
    assert bench.store.stats().items == 2


def test_an_index_that_breaks_while_it_is_open_is_replaced(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    ids = {bench.add(number) for number in range(50)}
    other = Bench(tmp_path)
    bench.store.close()
    with (tmp_path / "index.db").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(60_000))
    bench = Bench(tmp_path)  # it finds the damage and puts a new index in its place
    assert bench.ids == ids and bench.codes == ["warning:samples.index-rebuilt"]
    newest = other.add(99)  # the other one still had the old index open
    assert bench.ids == {*ids, newest} == other.ids


def test_two_stores_on_one_directory_take_turns(tmp_path: Path) -> None:
    benches = [Bench(tmp_path) for _ in range(2)]
    failed: list[BaseException] = []

    def work(bench: Bench, numbers: range) -> None:
        try:
            for number in numbers:
                id = bench.add(number)
                bench.store.label(id, by_operator("good"))
                if number % 3 == 0:
                    bench.store.remove([id])
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=work, args=(bench, numbers))
        for bench, numbers in zip(benches, (range(30), range(15, 45)), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(error, KeyError) for error in failed), "only for want of what the other has removed"
    assert benches[0].files == benches[0].ids == benches[1].ids
    for id in benches[0].ids:
        benches[1].store.picture(id)


def test_the_disk_is_left_alone_below_the_reserve(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    bench = Bench(tmp_path, reserve=status.f_bavail * status.f_frsize + 64 * MIB)
    with pytest.raises(SamplesFull, match="reserved"):
        bench.add(1)
    assert bench.codes == ["warning:samples.full"] and not bench.files
