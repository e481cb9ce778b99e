"""The spool: durability, encryption, recovery, quota and eviction, two workers at once, the reader."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from edged.collab import spool_view
from edged.collab.sealing import OVERHEAD, Kek, SealError, WrongKey
from edged.collab.spool import Spool, SpoolFull, sample_value
from edged.collab.spool_files import BLOCK, SampleFiles
from edged.collab.spool_index import MIGRATIONS
from edged.store import Database, StoreError
from edgekit.messages import Event, HardSample, SendReason, Verdict

DEVICE = "DEVICE-A"
KEK = Kek(b"k" * 32)
MIB = 1 << 20


class Bench:
    """A spool with its clock and what it said."""

    def __init__(self, state: Path, quota: int = 64 * MIB, reserve: int = 0, kek: Kek = KEK, device: str = DEVICE):
        self.now = 1_800_000_000.0
        self.events: list[Event] = []
        self.lost: list[str] = []
        self.root = state / "spool"
        self.spool = Spool(
            self.root,
            kek,
            device,
            quota=quota,
            reserve=reserve,
            wall=self.wall,
            on_event=self.events.append,
            on_lost=self.lost.extend,
            ballast=64 * 1024,
        )

    def wall(self) -> float:
        self.now += 1.0
        return self.now

    @property
    def codes(self) -> list[str]:
        return [f"{event.level}:{event.code}" for event in self.events]


def header(sample_id: str, margin: float = 0.25, reason: SendReason = "hard", service: str = "solder") -> HardSample:
    verdict = Verdict(label="ok", score=0.6, margin=margin, model="small@1")
    return HardSample(
        sample_id=sample_id, service=service, answer_model="large", edge=verdict, reason=reason, captured_at=1.0
    )


def put(bench: Bench, sample_id: str, margin: float = 0.25, size: int = 1000, service: str = "solder") -> None:
    bench.spool.put(
        header(sample_id, margin, service=service), sample_id.encode() * (size // len(sample_id)), 1 - margin
    )


def test_a_sample_comes_back_as_it_was_and_nothing_of_it_is_readable_on_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    picture = b"JPEG-BYTES" * 500
    bench.spool.put(header("S1"), picture, 0.75)
    assert bench.spool.read("S1") == (header("S1"), picture)
    on_disk = SampleFiles(bench.root).path("S1")
    assert on_disk.stat().st_mode & 0o777 == 0o600
    content = on_disk.read_bytes()
    assert b"JPEG" not in content and b"solder" not in content
    assert len(content) - OVERHEAD - len(picture) < 300
    assert bench.spool.stats().items == 1 and bench.spool.stats().bytes == 2 * BLOCK


def test_most_valuable_first_oldest_of_equals_first_and_only_of_asked_services(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for sample_id, margin in (("easy", 0.9), ("old", 0.1), ("new", 0.1), ("middle", 0.5)):
        put(bench, sample_id, margin)
    put(bench, "foreign", 0.0, service="helmets")
    order = []
    while (sample_id := bench.spool.next(["solder"])) is not None:
        order.append(sample_id)
        bench.spool.done(sample_id)
    assert order == ["old", "new", "middle", "easy"]
    assert bench.spool.next([]) is None and bench.spool.next(["helmets"], skip_models=["large"]) is None
    assert bench.spool.next(["helmets"]) == "foreign"
    assert bench.spool.stats().delivered == 4 and bench.spool.stats().items == 1


def test_done_counts_once_and_removes_file_and_row(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, "S1")
    for _ in range(2):
        bench.spool.done("S1")
    assert bench.spool.stats().delivered == 1 and bench.spool.stats().bytes == 0
    assert not SampleFiles(bench.root).exists("S1") and bench.lost == []


def test_a_repeated_id_replaces_the_sample_and_is_counted_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, "S1", size=20_000)
    put(bench, "S1", size=1000)
    assert (bench.spool.stats().items, bench.spool.stats().bytes) == (1, BLOCK)


@pytest.mark.parametrize("bad", ["", "../x", "a/b", ".hidden", "x" * 65, "a\0b", "ü"])
def test_ids_that_are_no_file_names_are_refused(tmp_path: Path, bad: str) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(ValueError, match="no sample id"):
        bench.spool.put(header(bad), b"x", 0.5)
    assert bench.spool.stats().items == 0


def test_quota_evicts_the_least_valuable_first_then_the_oldest(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quota=4 * BLOCK)
    for sample_id, margin in (("a", 0.6), ("b", 0.4), ("c", 0.6), ("d", 0.2)):
        put(bench, sample_id, margin)
    put(bench, "e", 0.5)  # replaces a, the older of the two cheapest
    put(bench, "f", 0.0)  # replaces c
    assert bench.spool.waiting("solder") == {"b", "d", "e", "f"}
    assert bench.lost == ["a", "c"] and bench.spool.stats().evicted == 2
    with pytest.raises(SpoolFull, match="quota"):
        put(bench, "g", 0.9)  # worth less than everything inside: it is the one that goes
    assert bench.spool.waiting("solder") == {"b", "d", "e", "f"} and bench.spool.stats().evicted == 3
    assert bench.codes == ["warning:spool.full"], "said once"
    for sample_id in ("b", "d"):
        bench.spool.done(sample_id)
    bench.spool.maintain()
    assert bench.codes == ["warning:spool.full", "ok:spool.full"]


def test_a_sample_that_cannot_fit_evicts_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quota=4 * BLOCK)
    put(bench, "a", 0.9)
    with pytest.raises(SpoolFull):
        put(bench, "big", 0.0, size=5 * BLOCK)
    assert bench.spool.waiting("solder") == {"a"}


def test_the_disk_reserve_is_kept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, reserve=1 << 60)
    with pytest.raises(SpoolFull, match="reserved"):
        put(bench, "a")
    assert bench.spool.stats().items == 0


def test_a_dropped_purged_or_expired_sample_is_reported_as_lost(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for sample_id in ("a", "b"):
        put(bench, sample_id)
    put(bench, "c", service="helmets")
    bench.spool.drop("a")
    assert bench.spool.purge("helmets") == 1
    bench.now += 2 * 86_400
    put(bench, "young")
    assert bench.spool.expire("solder", days=1.0) == 1
    assert bench.lost == ["a", "c", "b"]
    assert bench.spool.waiting("solder") == {"young"}
    assert spool_view.totals(tmp_path) | {"bytes": 0} == {
        "items": 1, "bytes": 0, "evicted": 0, "delivered": 0, "rejected": 1, "expired": 1, "purged": 1,
    }  # fmt: skip
    assert bench.spool.purge() == 1


def test_samples_stored_before_the_clock_was_set_do_not_expire_when_it_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.now = 100.0  # 1970: a board without a battery
    put(bench, "a")
    bench.now = 1_800_000_000.0
    assert bench.spool.expire("solder", days=30.0) == 0
    bench.now += 31 * 86_400
    assert bench.spool.expire("solder", days=30.0) == 1


def test_a_lost_index_is_rebuilt_from_the_files(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, "a", 0.2)
    bench.spool.put(header("b", reason="audit"), b"x", 1.0)
    bench.spool.close()
    (bench.root / "index.db").write_bytes(b"\x99" * 20_000)
    again = Bench(tmp_path)
    assert again.codes == ["warning:spool.index-rebuilt"]
    assert list(again.root.glob("index.db.bad-*"))
    assert again.spool.read("a")[0] == header("a", 0.2)
    assert {sample.id: sample.value for sample in spool_view.spooled(tmp_path)} == {"a": 0.8, "b": 1.0}
    again.spool.close()
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (bench.root / name).unlink(missing_ok=True)
    assert Bench(tmp_path).spool.waiting("solder") == {"a", "b"}


def test_an_index_that_breaks_while_it_is_used_is_rebuilt_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    break_index(bench)
    put(bench, "after")
    assert bench.spool.waiting("solder") == {f"s{i}" for i in range(50)} | {"after"}
    assert "warning:spool.index-rebuilt" in bench.codes


def break_index(bench: Bench) -> None:
    """Damage the file under an open index of 50 samples."""
    for i in range(50):
        put(bench, f"s{i}")
    bench.spool._index._database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    with (bench.root / "index.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\x5a" * 4096 * 20)
    bench.spool._index._database.query("PRAGMA shrink_memory")


def test_an_index_that_cannot_be_rebuilt_at_once_is_rebuilt_when_the_disk_allows_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    break_index(bench)
    (bench.root / "index.db").rename(bench.root / "elsewhere")
    (bench.root / "index.db").mkdir()  # what nobody can open as a file
    with pytest.raises(StoreError):
        bench.spool.waiting("solder")
    with pytest.raises(SpoolFull, match="index cannot be written"):
        put(bench, "early")
    (bench.root / "index.db").rmdir()
    put(bench, "after")
    assert bench.spool.waiting("solder") == {f"s{i}" for i in range(50)} | {"after"}


def test_rows_without_files_and_half_written_files_go(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, "a")
    put(bench, "b")
    bench.spool.close()
    files = SampleFiles(bench.root)
    files.remove("a")
    half = files.path("b").with_name(".c.1234.tmp")
    half.write_bytes(b"half")
    again = Bench(tmp_path)
    assert again.spool.waiting("solder") == {"b"} and not half.exists()
    assert again.spool.stats().bytes == BLOCK


@pytest.mark.parametrize("case", ["other key", "other device", "renamed", "damaged"])
def test_a_file_that_does_not_open_is_an_error_kept_and_evicted_first(tmp_path: Path, case: str) -> None:
    bench = Bench(tmp_path)
    put(bench, "a", 0.0)
    put(bench, "b", 0.0)
    path = SampleFiles(bench.root).path("a")
    kek, device = KEK, DEVICE
    if case == "renamed":
        path.write_bytes(SampleFiles(bench.root).read("b"))
    elif case == "damaged":
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
    elif case == "other key":
        kek = Kek(b"z" * 32)
    else:
        device = "DEVICE-B"
    bench.spool.close()
    bench = Bench(tmp_path, quota=2 * BLOCK, kek=kek, device=device)
    with pytest.raises(SealError):
        bench.spool.read("a")
    bench.spool.set_aside("a")
    assert bench.spool.next(["solder"]) == (None if case == "other key" else "b")
    assert bench.codes == ["error:spool.wrong-key" if case == "other key" else "warning:spool.unreadable"]
    put(bench, "c", 0.5)
    assert bench.lost == ["a"]


def states(state: Path) -> dict[str, str]:
    return {sample.id: sample.state for sample in spool_view.spooled(state)}


def test_with_the_wrong_key_the_samples_are_kept_and_with_the_right_one_they_are_delivered(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, "a", 0.0)
    put(bench, "b", 0.5)
    before = spool_view.spooled(tmp_path)
    bench.spool.close()
    bench = Bench(tmp_path, kek=Kek(b"z" * 32))
    (event,) = bench.events
    assert (event.level, event.code) == ("error", "spool.wrong-key")
    assert "does not open 2 waiting samples" in event.text and "keys/kek" in event.text
    assert states(tmp_path) == {"a": "unreadable", "b": "unreadable"} and bench.spool.next(["solder"]) is None
    put(bench, "c", 0.9)  # life goes on under the new key
    assert bench.spool.next(["solder"]) == "c"
    bench.spool.maintain()
    assert len(bench.events) == 1, "it is said once"
    bench.spool.close()
    bench = Bench(tmp_path)
    assert "does not open 1 waiting sample," in bench.events[0].text, "that is c, sealed meanwhile"
    assert [sample for sample in spool_view.spooled(tmp_path) if sample.id != "c"] == before
    assert bench.spool.next(["solder"]) == "a" and bench.spool.read("a")[0] == header("a", 0.0)
    assert bench.spool.purge() == 3
    assert bench.codes == ["error:spool.wrong-key", "ok:spool.wrong-key"] and bench.lost == ["a", "b", "c"]


def test_a_key_that_comes_back_while_the_spool_is_open_is_used(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, "a")
    bench.spool.use_key(Kek(b"z" * 32))
    bench.spool.maintain()
    assert bench.spool.next(["solder"]) is None
    bench.spool.use_key(KEK)
    bench.spool.maintain()
    assert bench.spool.next(["solder"]) == "a" and bench.spool.read("a")
    assert bench.codes == ["error:spool.wrong-key", "ok:spool.wrong-key"]


def test_an_index_that_was_lost_under_the_wrong_key_is_completed_under_the_right_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    put(bench, "a", 0.25)
    bench.spool.close()
    for path in bench.root.glob("index.db*"):
        path.unlink()
    bench = Bench(tmp_path, kek=Kek(b"z" * 32))
    assert bench.codes == ["error:spool.wrong-key"] and states(tmp_path) == {"a": "unreadable"}
    assert bench.spool.expire_others([], days=0.0) == 0, "nobody knows whose it is"
    assert bench.spool.next([], wanted=[]) is None
    bench.spool.close()
    bench = Bench(tmp_path)
    assert bench.spool.next(["solder"]) == "a" and bench.events == []
    (sample,) = spool_view.spooled(tmp_path)
    assert (sample.service, sample.value) == ("solder", 0.75)


def test_samples_of_an_older_release_learn_their_key_when_they_are_tried(tmp_path: Path) -> None:
    Bench(tmp_path).spool.close()
    files = SampleFiles(tmp_path / "spool")
    bench = Bench(tmp_path)
    put(bench, "a")
    bench.spool.close()
    for path in (tmp_path / "spool").glob("index.db*"):
        path.unlink()
    with Database(tmp_path / "spool" / "index.db", MIGRATIONS[:1]) as old:
        row = ("a", "solder", "large", "hard", 0.75, 1.0, 1_800_000_000.0, BLOCK, "unreadable")
        old.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    bench = Bench(tmp_path, kek=Kek(b"z" * 32))
    assert bench.spool.next(["solder"]) == "a"
    with pytest.raises(WrongKey) as caught:
        bench.spool.read("a")
    bench.spool.set_aside("a", caught.value)
    assert bench.codes == ["error:spool.wrong-key"] and bench.spool.next(["solder"]) is None
    bench.spool.close()
    bench = Bench(tmp_path)
    assert bench.spool.next(["solder"]) == "a" and files.exists("a")


def test_samples_of_removed_services_leave_unless_they_are_held_and_expire(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    for sample_id, service in (("a", "solder"), ("b", "gone"), ("c", "private"), ("d", "waits")):
        put(bench, sample_id, service=service)
    bench.spool.hold("private", "all")
    assert bench.spool.next(["gone"]) == "b" and bench.spool.next(["private"]) is None
    offered = []
    while (sample_id := bench.spool.next(["solder"], wanted=["solder", "waits"])) is not None:
        offered.append(sample_id)
        bench.spool.done(sample_id)
    assert offered == ["a", "b"]
    assert states(tmp_path) == {"c": "held", "d": "waiting"}
    bench.spool.hold("private", "none")
    assert bench.spool.next([], wanted=["waits"]) == "c"
    bench.now += 31 * 86_400
    assert bench.spool.expire_others(["waits"], days=30.0) == 1
    assert states(tmp_path) == {"d": "waiting"} and bench.lost == ["c"]


def test_two_workers_share_one_spool_and_neither_sweeps_the_other_s_files(tmp_path: Path) -> None:
    old = Bench(tmp_path)
    put(old, "a")
    in_flight = SampleFiles(old.root).path("a").with_name(".x.1234.tmp")
    in_flight.write_bytes(b"being written by the old worker")
    new = Bench(tmp_path)
    assert in_flight.exists(), "the old worker is alive, so nothing is swept"
    put(new, "b")
    old.spool.done("a")
    new.spool.maintain()
    assert new.spool.stats().items == 1 and new.spool.stats().delivered == 1
    old.spool.close()
    new.spool.maintain()
    assert not in_flight.exists(), "once alone, the new worker recovers"
    put(new, "c")
    assert new.spool.waiting("solder") == {"b", "c"}


def test_many_threads_at_once_keep_quota_and_count(tmp_path: Path) -> None:
    bench = Bench(tmp_path, quota=20 * BLOCK)

    def work(thread: int) -> None:
        for i in range(15):
            put(bench, f"t{thread}-{i}", 0.5)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = bench.spool.stats()
    assert report.items == 20 and report.bytes == 20 * BLOCK and report.evicted == 40
    files = bench.root.glob("??/*")
    assert {p.name for p in files} == bench.spool.waiting("solder")


def test_the_reader_needs_no_spool_and_does_not_disturb_it(tmp_path: Path) -> None:
    assert spool_view.spooled(tmp_path) == [] and spool_view.totals(tmp_path) == {} and spool_view.left(tmp_path) == []
    assert not (tmp_path / "spool").exists()
    bench = Bench(tmp_path)
    put(bench, "a", 0.75)
    (sample,) = spool_view.spooled(tmp_path, "solder")
    assert (sample.id, sample.reason, sample.value, sample.bytes, sample.state) == ("a", "hard", 0.25, BLOCK, "waiting")
    assert spool_view.spooled(tmp_path, "helmets") == []


def test_the_supervisor_s_side_imports_no_numpy() -> None:
    script = "import sys, edged.store, edged.collab.spool, edged.collab.spool_view; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_recovered_samples_are_worth_what_the_gate_would_say() -> None:
    assert sample_value("hard", 0.3) == pytest.approx(0.7)
    assert sample_value("hard", -5.0) == 1.0
    assert (sample_value("audit", 0.9), sample_value("calibrating", 0.9), sample_value("safe-mode", 0.1)) == (
        1.0,
        2.0,
        2.0,
    )


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from edged.collab.sealing import Kek
    from edged.collab.spool import Spool
    from edgekit.messages import HardSample, Verdict

    spool = Spool(Path(sys.argv[1]) / "spool", Kek(b"k" * 32), "DEVICE-A", quota=1 << 26, reserve=0, ballast=4096)
    verdict = Verdict(label="ok", score=0.6, margin=0.25, model="small@1")
    for i in range(3):
        header = HardSample(sample_id=f"s{i}", service="solder", answer_model="large", edge=verdict, reason="hard",
                            captured_at=1.0)
        spool.put(header, b"picture %d" % i, 0.75)
        print("stored", f"s{i}", flush=True)
    while (sample_id := spool.next(["solder"])) is not None:
        print("answered", sample_id, flush=True)
        spool.done(sample_id)
        print("done", sample_id, flush=True)
    """
)


@pytest.mark.parametrize("point", ["spool.written", "spool.indexed", "spool.delivered", "spool.removed"])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_kill_9_at_every_crash_point(tmp_path: Path, point: str, passes: int) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env={"EDGED_CRASH_AT": f"{point}:{passes}", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -9, child.stderr
    lines = [line.split() for line in child.stdout.splitlines()]
    stored = {sample_id for verb, sample_id in lines if verb == "stored"}
    answered = {sample_id for verb, sample_id in lines if verb == "answered"}

    bench = Bench(tmp_path)
    waiting = bench.spool.waiting("solder")
    assert stored - answered <= waiting, "a sample whose put returned and that was not answered is never lost"
    assert not waiting & answered, "a sample that was answered is not delivered again"
    assert waiting - stored <= {f"s{len(stored)}"}, "the one in flight may be there, whole"
    for sample_id in waiting:
        assert bench.spool.read(sample_id)[1] == b"picture " + sample_id[1:].encode()
    files = {path.name for path in bench.root.glob("??/*")} | {path.name for path in bench.root.glob("??/.*")}
    assert files == waiting, "no orphans, no half-written files"
    assert bench.spool.stats().items == len(waiting) and bench.spool.stats().bytes == len(waiting) * BLOCK
    assert bench.spool.stats().delivered == len(answered)
