"""`cloudd train` as a person uses it, without a daemon and beside one."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from train_pictures import Draw

from cloudd.cli import train
from edgekit.packages import open_package
from edgekit.vision.classification import Classifier
from tests.support.cloud import Cloud


@pytest.fixture
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb lowers the priority of its process, which is the test's here."""
    monkeypatch.setattr(os, "nice", lambda by: 0)


def here(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="cloudd")
    train.add(parser.add_subparsers(required=True))
    args = parser.parse_args(["train", *map(str, arguments)])
    return int(args.do(args))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cloudd.cli.main", "train", *map(str, arguments)]


def cloudd(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=100, check=False)


def begun(out: Path, discs: Path, epochs: int) -> subprocess.Popen[str]:
    """A real process that trains, and has saved its first epoch."""
    arguments = (
        "--data",
        discs,
        "--group",
        "board",
        "--model",
        "discs",
        "--out",
        out,
        "--epochs",
        epochs,
        "--threads",
        1,
    )
    process = subprocess.Popen(command(*arguments), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 1 of"):
            until = time.monotonic() + 30
            while not (out / "discs@1.training" / "checkpoint").exists() and time.monotonic() < until:
                time.sleep(0.01)
            return process
    raise AssertionError("it ended early")


@pytest.mark.usefixtures("same_priority")
def test_a_folder_of_pictures_becomes_a_package(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = here("--data", discs, "--group", "board", "--model", "discs", "--out", tmp_path, "--epochs", 5)
    said = capsys.readouterr()
    assert status == 0
    assert "discs@1: 220 pictures (" in said.err and "epoch 5 of 5: loss " in said.err and "\r" not in said.err
    assert "discs@1: tiny_cnn, 32x32 grey" in said.out and "RECALL" in said.out and "always good: " in said.out
    assert f"hand it out with: cloudd models add {tmp_path}/discs@1" in said.out
    assert [one.name for one in tmp_path.iterdir()] == ["discs@1"]
    model = Classifier.load(open_package(tmp_path / "discs@1"))
    assert model.prove() >= 2
    model.close()


@pytest.mark.usefixtures("same_priority")
def test_programs_get_every_number_and_labels_are_merged(
    draw: Draw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw()
    text = data.read_text().replace(",bad,", ",hole,", 30)
    (data.parent / "three.csv").write_text(text)
    arguments = ("--data", data.parent / "three.csv", "--model", "discs", "--version", "7", "--out", tmp_path, "--json")
    assert here(*arguments, "--merge", "bad=hole,bad", "--epochs", 5, "--seed", 3, "--balance", "full") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == "discs@7" and said["package"] == str(tmp_path / "discs@7")
    assert said["lineage"]["data"]["merged"] == {"hole": "bad", "bad": "bad"}
    assert [one["label"] for one in said["lineage"]["figures"]["labels"]] == ["bad", "good"]
    assert said["lineage"]["recipe"]["settings"]["seed"] == 3
    assert said["lineage"]["recipe"]["settings"]["balance"] == "full"


@pytest.mark.usefixtures("same_priority")
def test_a_model_that_is_worth_nothing_is_refused_with_the_reason(
    draw: Draw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = draw(150, 60, seed=5, random_labels=True)
    assert here("--data", data, "--model", "discs", "--out", tmp_path, "--epochs", 2) == 1
    said = capsys.readouterr().out
    assert "Refused: it gets " in said and "There is no package." in said
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("same_priority")
def test_bad_data_is_told_and_leaves_nothing(discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (("--data", tmp_path / "empty", "--model", "m"), "has no labelled pictures"),
        (("--data", tmp_path / "gone", "--model", "m"), "does not exist"),
        (("--data", discs, "--group", "lot", "--model", "m"), 'has no column "lot"'),
        (("--data", discs), "name the new model: --model NAME"),
        (("--data", discs, "--model", "No Name"), "--model"),
        (("--data", discs, "--model", "m", "--architecture", "centre_point"), "centre_point finds boxes"),
        (("--resume", tmp_path / "empty"), "holds no training that was begun"),
        (("--resume", tmp_path / "empty", "--cpu-share", "0.5"), "--cpu-share was decided when the training began"),
    ):
        assert here(*arguments, *(() if "--resume" in arguments else ("--out", out))) == 1
        said = capsys.readouterr()
        assert said.err.startswith("cloudd: ") and message in said.err and said.out == ""
    assert not out.exists()


@pytest.mark.usefixtures("same_priority")
def test_training_ends_after_the_time_that_it_may_take(
    discs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here("--data", discs, "--model", "discs", "--out", tmp_path, "--epochs", 5000, "--time", "1")
    said = capsys.readouterr()
    assert "since 1 seconds of computing were allowed" in said.out and "epoch 5000" not in said.err


def test_a_terminal_gets_a_bar(discs: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    arguments = ("--data", discs, "--model", "discs", "--out", tmp_path, "--epochs", 1)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # which is how the other side's end shows
        while part := os.read(ours, 65536):
            said += part
    os.close(ours)
    assert process.wait(60) in (0, 1)
    assert re.search(rb"\repoch 1 of 1 +\[#+\.+\] \d+ of 10", said) and b"\nepoch 1 of 1: loss" in said.replace(
        b"\r", b"\n"
    )


def test_ctrl_c_pauses_with_a_checkpoint_and_says_how_to_resume(discs: Path, tmp_path: Path) -> None:
    process = begun(tmp_path, discs, 400)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    folder = tmp_path / "discs@1.training"
    assert f"Paused: it was interrupted. Go on with: cloudd train --resume {folder}" in said
    assert (folder / "checkpoint").exists()


def test_a_killed_training_goes_on_and_gives_the_model_of_one_that_was_not(discs: Path, tmp_path: Path) -> None:
    process = begun(tmp_path / "killed", discs, 6)
    process.kill()
    process.wait(30)
    folder = tmp_path / "killed" / "discs@1.training"
    again = cloudd("--data", discs, "--group", "board", "--model", "discs", "--out", tmp_path / "killed")
    assert again.returncode == 1 and f"go on with: cloudd train --resume {folder}" in again.stderr
    resumed = cloudd("--resume", folder, "--threads", 1)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on after step " in resumed.stderr and "epoch 6 of 6" in resumed.stderr
    assert not folder.exists()
    whole = cloudd(
        "--data",
        discs,
        "--group",
        "board",
        "--model",
        "discs",
        "--out",
        tmp_path / "whole",
        "--epochs",
        6,
        "--threads",
        1,
    )
    assert whole.returncode == 0, whole.stderr
    digests = {open_package(tmp_path / name / "discs@1").digest for name in ("killed", "whole")}
    assert len(digests) == 1


def test_a_model_is_registered_and_its_version_is_taken_then(discs: Path, tmp_path: Path) -> None:
    with Cloud(tmp_path / "cloud") as running:
        arguments = ("--data", discs, "--model", "discs", "--register", "--state", running.state)
        done = cloudd(*arguments, "--out", tmp_path, "--epochs", 4)
        assert done.returncode == 0, done.stderr
        assert f"discs@1 is in {tmp_path}/discs@1 and registered." in done.stdout
        assert running.admin.get("/models/discs@1")["version"] == "1"
        began = time.monotonic()
        again = cloudd(*arguments, "--out", tmp_path / "again", "--epochs", 10_000)
        assert again.returncode == 1 and time.monotonic() - began < 60
        assert "discs@1 is registered already; give the new package another --version" in again.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--size", "8"), "'8' is no size"),
        (("--size", "64x64x3"), "is no size"),
        (("--merge", "bad"), "'bad' merges nothing"),
        (("--device-budget", "fast"), "is no number of multiply-adds"),
        (("--epochs", "0"), "'0' is no number of epochs"),
        (("--time", "0"), "is no time to train for"),
        (("--cpu-share", "nan"), "'nan' is no share of the time"),
        (("--seed", "-1"), "'-1' is no seed"),
        (("--threads", "x"), "'x' is no number of threads"),
        (("--architecture", "vgg"), "invalid choice"),
        (("--resume", "there"), "not allowed with argument --data"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(
    wrong: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        here("--data", "there", "--model", "m", *wrong)
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("text", "count"), [("50M", 50_000_000), ("1.2G", 1_200_000_000), ("300k", 300_000)])
def test_multiply_adds_may_be_written_short(text: str, count: int) -> None:
    from cloudd.cli import train_options

    assert train_options.macs(text) == count


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        here("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for needed in ("cloudd train --data", "--resume", "Ctrl-C pauses", "lineage.json", "Exit status", "--group"):
        assert needed in said
