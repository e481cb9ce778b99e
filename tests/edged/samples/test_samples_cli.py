"""`edged samples` and `edged datasets` against a real daemon: pictures in, labels, exports, and what goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_bench import png

from edged.samples.bodies import AddHeader, AddReply
from edged.samples.records import NewSample, Opinion, SampleStats
from edgekit.envelope import seal
from tests.support.edged import Edged, wait_for


@pytest.fixture(scope="module")
def edged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edged]:
    with Edged(tmp_path_factory.mktemp("samples") / "state") as edged:
        yield edged


def run(edged: Edged, *arguments: str) -> subprocess.CompletedProcess[str]:
    child = {name: value for name, value in os.environ.items() if not name.startswith(("EDGED_", "STATE_"))}
    return subprocess.run(
        [sys.executable, "-m", "edged", "--state", str(edged.state), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=child,
    )


def said(edged: Edged, *arguments: str) -> str:
    done = run(edged, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_from_a_csv_of_pictures_to_an_export_and_real_removal(edged: Edged, tmp_path: Path) -> None:
    assert "No samples are kept" in said(edged, "samples", "list")
    assert json.loads(said(edged, "samples", "stats", "--json"))["items"] == 0
    assert not (edged.state / "samples").exists(), "asking makes nothing"
    data = tmp_path / "data"
    (data / "pictures").mkdir(parents=True)
    lines = ["file,label,board"]
    for number in range(6):
        (data / "pictures" / f"{number}.png").write_bytes(png(number, width=64, height=48))
        lines.append(f"pictures/{number}.png,{'bad' if number % 3 == 0 else 'good'},B{number % 2}")
    (data / "labels.csv").write_text("\n".join(lines))
    command = ("samples", "import", str(data / "labels.csv"), "--service", "solder", "--group", "board")
    assert "6 pictures are new in solder, 0 were there already" in said(edged, *command)
    assert "0 pictures are new in solder, 6 were there already" in said(edged, *command)

    samples = json.loads(said(edged, "samples", "list", "--service", "solder", "--json"))
    assert {one["group"] for one in samples} == {"B0", "B1"} and all(one["source"] == "import" for one in samples)
    bad = next(one["id"] for one in samples if one["label"]["label"]["label"] == "bad")
    assert "says anna" in said(edged, "samples", "label", bad[:12], "good", "--author", "anna")
    shown = said(edged, "samples", "show", bad[:12], "--picture", str(tmp_path / "one.png"))
    assert "good: operator anna" in shown and "bad: import labels.csv" in shown and "(does not count)" in shown
    assert (tmp_path / "one.png").read_bytes() in {png(number, width=64, height=48) for number in range(6)}

    assert "has 6 pictures" in said(edged, "datasets", "make", "joints-1", "--service", "solder")
    assert "joints-1" in said(edged, "datasets", "list") and "in 2 groups" in said(
        edged, "datasets", "show", "joints-1"
    )
    for form in ("csv", "coco", "folder"):
        target = tmp_path / form
        assert "6 pictures are in" in said(edged, "datasets", "export", "joints-1", str(target), "--format", form)
        assert len(list(target.rglob("*.png"))) == 6
    refused = run(edged, "samples", "remove", bad[:12])
    assert refused.returncode == 1 and "edged datasets delete joints-1 first" in refused.stderr
    said(edged, "datasets", "delete", "joints-1")
    assert "1 sample removed" in said(edged, "samples", "remove", bad[:12])
    assert "5 samples removed" in said(edged, "samples", "remove", "--service", "solder")
    assert not list((edged.state / "samples" / "files").glob("??/*"))


def test_hard_samples_are_queued_and_labelled_with_boxes(edged: Edged) -> None:
    edge = Opinion(label="good", score=0.6, margin=0.2, model="small@1")
    cloud = Opinion(label="bad", score=0.9, margin=0.8, model="large@1")
    new = NewSample(service="tht", source="disputed", captured_at=1.7e9, edge=edge, cloud=cloud)
    id = edged.client.post("/samples", AddReply, seal(AddHeader(new=new), png(40))).id
    assert id[:12] in said(edged, "samples", "queue", "--service", "tht")
    done = run(edged, "samples", "label", id, "--box", "crack,1,1,90,9")
    assert done.returncode == 1 and "outside of the picture, which has 32x24 pixels" in done.stderr
    assert "crack at 1,1" in said(edged, "samples", "label", id, "--box", "crack,1,1,20,9")
    assert "Nothing waits" in said(edged, "samples", "queue", "--service", "tht")
    said(edged, "datasets", "make", "tht-1", "--service", "tht")
    assert json.loads(said(edged, "datasets", "show", "tht-1", "--json"))["summary"]["labels"] == {"crack": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("samples", "show", "ffff"), "no sample begins with 'ffff'"),
        (("samples", "label", "ffff"), "say one of"),
        (("samples", "label", "ffff", "--box", "crack,1,2,x,4"), "is no box"),
        (("samples", "remove"), "name samples, or a service"),
        (("samples", "import", "/nowhere", "--service", "x"), "does not exist"),
        (("datasets", "make", "Bad Name", "--service", "x"), "no name for a dataset version"),
        (("datasets", "make", "v9", "--service", "empty"), "no samples with such labels"),
        (("datasets", "make", "v9", "--service", "empty", "--since", "yesterday"), "is no date"),
        (("datasets", "show", "v9"), "no dataset version 'v9'"),
        (("datasets", "export", "v9", "/tmp/v9"), "no dataset version 'v9'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(edged: Edged, arguments: tuple[str, ...], words: str) -> None:
    done = run(edged, *arguments)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    "body",
    [b"", b"\0" * 7, b"\0\0\0\2\0\0\0\0{}", seal(NewSample(service="x", source="import", captured_at=1.0), b"x")],
)
def test_a_body_that_is_no_sample_is_refused(edged: Edged, body: bytes) -> None:
    from edged.api import ApiError

    with pytest.raises(ApiError, match="no envelope of a sample"):
        edged.client.post("/samples", AddReply, body)


def test_metrics_and_health_say_how_it_stands(edged: Edged) -> None:
    new = NewSample(service="metrics", source="operator", captured_at=1.7e9)
    id = edged.client.post("/samples", AddReply, seal(AddHeader(new=new), png(41))).id
    text = edged.client.text("/metrics")
    items = edged.client.get("/samples/stats", SampleStats).items
    assert f"edged_samples_items {items}" in text and "edged_samples_kept_total" in text
    path = next((edged.state / "samples" / "files").glob(f"??/{id}"))
    path.write_bytes(path.read_bytes()[:-1])
    assert run(edged, "samples", "show", id, "--picture", "/dev/null").returncode == 1
    wait_for(lambda: any(item.code == "samples.damaged" for item in edged.status().health.items))
    assert "removed for ever" in said(edged, "samples", "remove", "--unreadable")
    wait_for(lambda: not any(item.code == "samples.damaged" for item in edged.status().health.items))
