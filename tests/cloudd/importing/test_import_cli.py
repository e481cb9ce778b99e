"""`cloudd import` as a person uses it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from foreign_models import brightness, save

from cloudd.cli import importing
from cloudd.cli.main import VERBS
from cloudd.importing import CONVENTIONS
from edgekit.packages import open_package
from edgekit.training.folded import fold
from edgekit.vision.classification import Classifier
from tests.support.cloud import Cloud


@pytest.fixture(autouse=True)
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb lowers the priority of its process, which is the test's here."""
    monkeypatch.setattr(os, "nice", lambda by: 0)


def here(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="cloudd")
    importing.add(parser.add_subparsers(required=True))
    args = parser.parse_args(["import", *map(str, arguments)])
    return int(args.do(args))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("dark\nmiddle\nbright\n")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(brightness(ending="Softmax", middle="LRN"), tmp_path / "m.onnx")


def test_the_verb_is_there_and_knows_every_convention() -> None:
    assert importing in VERBS
    assert tuple(CONVENTIONS) == importing.NORMALISE


def test_a_person_reads_what_was_read_assumed_changed_and_examined(
    model: Path, labels: Path, shades: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = (model, "--model", "shades", "--labels", labels, "--normalise", "unit", "--pictures", shades, "--out", out)
    assert here(*told, "--input", "colour=bgr", "interpolation=linear") == 0
    said = capsys.readouterr().out
    assert "shades@1: m.onnx (onnx), 0.00 MB, 3 labels" in said
    assert "the last Softmax is gone" in said
    assert "size 16x16 (read)" in said and "colour bgr (said)" in said and "resize stretch (assumed)" in said
    assert "values (pixel - 0) * 0.00392157 (said)" in said
    assert "on 16 pictures and 4 tensors of noise no output differs by more than" in said
    assert "Right answers: 24 of 24 (85.8% to 100.0%)." in said
    assert "Devices can learn with it: batchnorm, head (5 weights, 1 BatchNormalization)." in said
    assert 'not full: node "the_LRN": operator LRN has no gradient rule.' in said
    assert f"hand it out with: cloudd models add {out}/shades@1" in said
    loaded = Classifier.load(open_package(out / "shades@1"))
    assert loaded.prove() == 6
    loaded.close()


def test_a_person_reads_what_the_checkpoint_is(
    labels: Path, shades: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served, whole = save(fold(brightness()), tmp_path / "served.onnx"), save(brightness(), tmp_path / "trained.onnx")
    told = (served, "--model", "shades", "--labels", labels, "--normalise", "unit", "--pictures", shades)
    assert here(*told, "--out", tmp_path, "--checkpoint", whole) == 0
    said = capsys.readouterr().out
    assert "Checkpoint: trained.onnx (onnx), 1 BatchNormalization; no output differs from the model's by more" in said
    assert "Devices can learn with it: batchnorm, head, last-blocks, full" in said


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ((), "say --normalise NAME"),
        (("--normalise", "unit", "--input", "mean=1"), "--normalise says mean and scale already"),
        (("--input", "colour"), "write KEY=VALUE"),
        (("--input", "color=rgb"), "the keys are width, height, colour"),
        (("--input", "colour=red"), "colour"),
        (("--input", "mean=1,2", "scale=1"), '"input.mean" has 2 values'),
        (("--normalise", "unit", "--detection", "report=0.4"), "say --detection head=NAME"),
        (("--normalise", "unit", "--detection", "head=yolov9"), "yolov9"),
        (("--normalise", "unit", "--output", "name=other"), 'has no output "other"'),
        (("--normalise", "unit", "--version", "2", "--labels", "/nonexistent"), ""),
    ],
)
def test_what_is_wrong_is_one_refusal_and_leaves_nothing(
    model: Path,
    labels: Path,
    shades: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wishes: tuple[str, ...],
    message: str,
) -> None:
    told = (model, "--model", "shades", "--labels", labels, "--pictures", shades, "--out", tmp_path / "out")
    if not message:
        with pytest.raises(OSError, match="nonexistent"):
            here(*told, *wishes)
    else:
        assert here(*told, *wishes) == 1
        said = capsys.readouterr()
        assert said.err.startswith("cloudd: ") and message in said.err and said.out == ""
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))


def test_pictures_are_left_out_only_on_purpose(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        here(model, "--model", "shades")
    assert ended.value.code == 2 and "--pictures --unproved" in capsys.readouterr().err


def test_programs_get_json_and_a_package_is_registered_and_its_version_is_taken_then(
    model: Path, labels: Path, tmp_path: Path
) -> None:
    with Cloud(tmp_path / "state") as running:
        told = (
            model,
            "--model",
            "shades",
            "--labels",
            labels,
            "--normalise",
            "unit",
            "--unproved",
            "--register",
            "--json",
        )
        command = [sys.executable, "-m", "cloudd.cli.main", "import", *map(str, told), "--state", str(running.state)]
        done = subprocess.run([*command, "--out", tmp_path / "o"], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["model"] == "shades@1" and said["samples"] == 0
        assert said["lineage"]["source"]["kind"] == "onnx" and said["lineage"]["learning"]["rungs"]["head"] == ""
        assert running.admin.get("/models/shades@1")["version"] == "1"
        again = subprocess.run([*command, "--out", tmp_path / "p"], capture_output=True, text=True, timeout=100)
    assert again.returncode == 1 and not (tmp_path / "p").exists()
    assert "shades@1 is registered already; give the new package another --version" in again.stderr
