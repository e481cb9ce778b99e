"""SIGKILL at every crash point: what was acknowledged is there, what was removed is gone, nothing is half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sample_bench import Bench, by_operator, png

from edged.samples.records import sample_id_of

CHILD = """
import hashlib, sys
from pathlib import Path
from sample_bench import Bench, by_operator
from edged.samples.reading import Filter

bench = Bench(Path(sys.argv[1]))
def say(*words):
    print(*words, flush=True)
for number in range(6):
    id = bench.add(number)
    say("added", id)
    bench.store.label(id, by_operator(f"class-{number}"))
    say("labelled", id)
    if number % 2:
        bench.store.remove([id])
        say("removed", id)
bench.store.versions.make("v1", Filter(service="solder"))
say("made", "v1")
bench.store.versions.delete("v1")
say("deleted", "v1")
"""
SAMPLES = (
    "samples.written",
    "samples.indexed",
    "samples.labelled",
    "samples.resealed",
    "samples.marked",
    "samples.unlinked",
)
VERSIONS = ("versions.written", "versions.indexed", "versions.deleted")
ALL = [(point, passes) for point in SAMPLES for passes in (1, 3)] + [(point, 1) for point in VERSIONS]


@pytest.mark.parametrize(("point", "passes"), ALL)
def test_kill_9_at_every_crash_point(tmp_path: Path, point: str, passes: int) -> None:
    here = Path(__file__)
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env={"EDGED_CRASH_AT": f"{point}:{passes}", "PYTHONPATH": f"{here.parents[3]}:{here.parent}"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == -9, child.stderr
    said: dict[str, set[str]] = {verb: set() for verb in ("added", "labelled", "removed", "made", "deleted")}
    for line in child.stdout.splitlines():
        verb, what = line.split()
        said[verb].add(what)

    bench = Bench(tmp_path)
    assert bench.codes == [], "a crash leaves nothing damaged"
    known = {sample_id_of("solder", _sha(number)): number for number in range(6)}
    in_flight = bench.ids - said["added"]
    assert len(in_flight) <= 1 and bench.ids <= known.keys()
    assert not bench.ids & said["removed"], "what was removed stays away"
    gone = said["added"] - said["removed"] - bench.ids
    assert len(gone) <= 1 and all(known[id] % 2 for id in gone), "at most the one whose removal was under way"
    for id in bench.ids:
        assert bench.store.picture(id) == png(known[id])
        labels = [record.label.label for record in bench.store.sample(id).labels]
        wanted = [f"class-{known[id]}"]
        assert labels == wanted or (id not in said["labelled"] and labels == [])
        header, _ = bench.store._vault.open(id)
        assert [record.label.label for record in header.labels] == labels, "the file knows what the row knows"
    assert bench.files == bench.ids, "no orphans, no half-written files"
    assert bench.store.stats().items == len(bench.ids)
    versions = [info.name for info in bench.store.versions.all()]
    on_disk = [path.name for path in (tmp_path / "versions").iterdir()] if (tmp_path / "versions").exists() else []
    assert versions == on_disk
    assert not (said["made"] - said["deleted"]) or versions == ["v1"], "a deletion that returned nothing is undone"


def test_the_same_work_can_be_done_again_after_a_crash(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    id = bench.add(1)
    bench.store.label(id, by_operator("x"))
    bench.store.close()
    assert Bench(tmp_path).add(1) == id


def _sha(number: int) -> str:
    import hashlib

    return hashlib.sha256(png(number)).hexdigest()
