"""`cloudd compress` as a person uses it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from shutil import copyfile

import pytest

from cloudd.cli import compress
from cloudd.compress import distil
from cloudd.compress.maker import Materials, Recipe
from cloudd.compress.variants import KINDS, Kind
from edgekit.packages import Package, open_package


@pytest.fixture(autouse=True)
def same_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb lowers the priority of its process, which is the test's here."""
    monkeypatch.setattr(os, "nice", lambda by: 0)


def cloudd(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="cloudd")
    compress.add(parser.add_subparsers(required=True))
    args = parser.parse_args(["compress", *map(str, arguments)])
    return int(args.do(args))


def test_a_package_is_compressed_without_a_daemon(
    solder: Package, joints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cloudd(solder.root, "--data", joints, "--out", tmp_path, "--variants", "u8s8,fp16")
    said = capsys.readouterr()
    assert status == 0 and said.err == ""
    assert "solder-large@1: 5" in said.out and "VARIANT" in said.out and "u8s8" in said.out and "kept" in said.out
    assert f"cloudd models add {tmp_path}/solder-large@1-c1" in said.out
    assert open_package(tmp_path / "solder-large@1-c1").manifest.version == "1-c1"


def test_programs_get_every_number(
    solder: Package, joints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        cloudd(solder.root, "--data", joints, "--out", tmp_path, "--variants", "s8s8", "--version", "9", "--json") == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == "solder-large@9"
    (made,) = said["lineage"]["variants"]
    assert made["accepted"] and made["gate"]["drop_bound"] < 0.01 and said["speeds"]["s8s8"]["p95_ms"] > 0


def test_quick_tries_what_needs_no_training(
    solder: Package, joints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cloudd(solder.root, "--data", joints, "--out", tmp_path, "--quick", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [made["kind"] for made in said["lineage"]["variants"]] == ["u8s8", "s8s8", "fp16"]
    assert said["lineage"]["data"]["training"] == 0


def test_more_pictures_to_teach_with_are_on_record_and_none_of_them_judges(
    solder: Package,
    joints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distil, "SHOWN", 64)
    monkeypatch.setattr(distil, "_EPOCH", 1)
    options = ("--variants", "pruned", "--train-data", joints, "--train-minutes", "1", "--json")
    cloudd(solder.root, "--data", joints, "--out", tmp_path, *options)
    data = json.loads(capsys.readouterr().out)["lineage"]["data"]
    assert data["held_out"] + data["training"] == data["pictures"] == 720


def test_a_refusal_is_told_with_the_reason_and_leaves_no_package(
    solder: Package,
    joints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copy(materials: Materials, target: Path, *, careful: bool) -> Recipe:
        copyfile(materials.model, target)
        return Recipe(method="the same again")

    monkeypatch.setitem(KINDS, "copy", Kind("copy", "", "fp32", copy, careful=False, leads=True))
    status = cloudd(solder.root, "--data", joints, "--out", tmp_path, "--variants", "copy", "--faster-here")
    said = capsys.readouterr()
    assert status == 1 and "copy refused: it takes" in said.out and "Nothing was kept" in said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{model}", "--data", "{tmp}/nothing"), "nothing does not exist"),
        (("{model}", "--data", "{tmp}"), "has no labelled pictures"),
        (("{tmp}/nothing", "--data", "{joints}"), "cannot be opened as a package directory"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: tuple[str, ...],
    message: str,
    solder: Package,
    joints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [part.format(model=solder.root, tmp=tmp_path, joints=joints) for part in arguments]
    assert cloudd(*filled, "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert said.err.startswith("cloudd: ") and message in said.err and said.out == ""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--variants", "int4"), "'int4' is no kind of variant; known are u8s8, s8s8, fp16"),
        (("--pictures", "10"), "at least 500 pictures"),
        (("--quick", "--variants", "u8s8"), "not allowed with argument"),
        (("--train-minutes", "0"), "is no time from 0.1 to 1440 minutes"),
        (("--version", "a b"), "is no model version"),
        ((), "--data"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(
    wrong: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", tmp_path) if wrong else ()
    with pytest.raises(SystemExit) as ended:
        cloudd("model", *data, *wrong)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cloudd("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for needed in (
        "cloudd compress ./solder-small --data ./pictures",
        "95 %",
        "lineage.json",
        "Exit status",
        "10 %",
        "--quick",
    ):
        assert needed in said
