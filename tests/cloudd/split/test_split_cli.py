"""`cloudd split` as a person uses it, without a daemon and beside one."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from split_networks import brightness

from cloudd.cli import split
from edgekit.packages import Package, open_package
from tests.support.cloud import Cloud, FakeDevice


@pytest.fixture
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb lowers the priority of its process, which is the test's here."""
    monkeypatch.setattr(os, "nice", lambda by: 0)


def here(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="cloudd")
    split.add(parser.add_subparsers(required=True))
    args = parser.parse_args(["split", *map(str, arguments)])
    return int(args.do(args))


def cloudd(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cloudd.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("same_priority")
def test_a_package_is_split_without_a_daemon(
    solder: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(solder.root, "--out", tmp_path, "--cuts", 2, "--no-register") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "solder-large@1 takes" in said.out and "16 places" in said.out and "WORK BEFORE" in said.out
    assert f"cloudd models add {tmp_path}/solder-large-tail@1 && cloudd models add" in said.out
    head = open_package(tmp_path / "solder-large-head@1").manifest.head
    assert head is not None and len(head.cuts) == 2


@pytest.mark.usefixtures("same_priority")
def test_programs_get_every_number(solder: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert here(solder.root, "--out", tmp_path, "--version", "7", "--whole", "--no-register", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["head"] == "solder-large-head@7" and said["tail"] == "solder-large-tail@7"
    assert {cut["name"] for cut in said["lineage"]["cuts"]} == set(said["tail_ms"])
    assert all(cut["difference"] <= 1e-3 for cut in said["lineage"]["cuts"])


@pytest.mark.usefixtures("same_priority")
def test_a_refused_cut_and_a_refusal_are_told_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = brightness(tmp_path / "loud", loud=1e5)
    assert here(loud.root, "--out", tmp_path, "--no-register") == 0
    assert "c1 was refused: with the features as they are sent" in capsys.readouterr().out
    restless = brightness(tmp_path / "restless", noise=0.5)
    assert here(restless.root, "--out", tmp_path / "out", "--no-register") == 1
    said = capsys.readouterr()
    assert said.err.startswith("cloudd: no cut of brightness@3 passed its proof") and said.out == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--cuts", "0"), "'0' is no number of cuts"),
        (("--cuts", "8"), "from 1 to 7"),
        (("--least-work", "1"), "'1' is no share"),
        (("--least-work", "nan"), "'nan' is no share"),
        (("--version", "a b"), "is no model version"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(
    wrong: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        here("model", *wrong)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        here("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for needed in ("cloudd split solder-large", "not anonymous", "lineage.json", "Exit status", "--whole"):
        assert needed in said


async def test_a_registered_model_is_split_by_its_name_and_only_its_head_is_for_devices(
    solder: Package, tmp_path: Path
) -> None:
    with Cloud(tmp_path / "cloud") as running:
        state = ("--state", running.state)
        running.admin.post("/models", {"path": str(solder.root)})
        done = cloudd("split", "solder-large", "--out", tmp_path, *state)
        assert done.returncode == 0, done.stderr
        assert 'are registered; a service splits with heads = "solder-large-head@1"' in done.stdout

        again = cloudd("split", "solder-large", "--out", tmp_path / "again", *state)
        assert again.returncode == 1
        assert "solder-large-head@1 is registered already; give the new packages another --version" in again.stderr

        device = FakeDevice(tmp_path / "device")
        assert (await device.enroll(running, running.invite())).status == 200
        head = await device.send(running, "GET", "/v1/models/solder-large-head/1")
        assert head.status == 200
        tail = await device.send(running, "GET", "/v1/models/solder-large-tail/1")
        assert tail.status == 404 and "stays at cloudd" in tail.error
        offered = open_package(tmp_path / "solder-large-head@1").manifest.files
        kept = open_package(tmp_path / "solder-large-tail@1").manifest.files
        for path, sha256 in kept.items():
            reply = await device.send(running, "GET", f"/v1/blobs/{sha256}")
            assert reply.status == (200 if sha256 in offered.values() else 404), path
        assert json.loads(head.body)["name"] == "solder-large-head"


def test_a_daemon_that_is_needed_and_not_there_is_told(tmp_path: Path) -> None:
    gone = cloudd("split", "solder-large", "--state", tmp_path / "nowhere")
    assert gone.returncode == 3 and "cloudd is not running here" in gone.stderr
