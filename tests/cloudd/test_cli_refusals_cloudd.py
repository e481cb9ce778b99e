"""Every verb of `cloudd` where something is missing: an exit status that says what, and one sentence that helps."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloudd.cli.main import build_parser, main
from tests.support.commands import FOREIGN, answering, example, leaves

LEAVES = list(leaves(build_parser()))
ASKING = [words for words, _ in LEAVES if words[0] not in ("run", "version")]


@pytest.mark.parametrize(("words", "arguments"), LEAVES, ids=[" ".join(words) for words, _ in LEAVES])
def test_every_argument_says_what_it_is(words: tuple[str, ...], arguments: list[argparse.Action]) -> None:
    for one in arguments:
        assert one.help, f"{' '.join(words)} {one.option_strings or one.dest}"


@pytest.fixture(autouse=True)
def as_nice_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs that compute give way to others, and only root could take that back from the process of all tests."""
    monkeypatch.setattr(os, "nice", lambda by: 0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("file,label\n")
    return tmp_path / "file"


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_without_a_daemon_a_verb_ends_with_a_sentence(
    words: tuple[str, ...], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main([*example(build_parser(), words, file), "--state", str(tmp_path)])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("cloudd: ") and err.count("\n") == 1
    assert status == 3 or (status == 1 and "not running" not in err), "1: what was named is wrong already"


@pytest.mark.parametrize("reply", FOREIGN)
def test_an_answer_of_somebody_else_is_no_traceback(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: bytes
) -> None:
    (tmp_path / "run").mkdir()
    with answering(tmp_path / "run" / "cloudd.sock", reply):
        for words in ASKING:
            found = main([*example(build_parser(), words, file), "--state", str(tmp_path)])
            err = capsys.readouterr().err
            assert err.startswith("cloudd: ") and err.count("\n") == 1 and err[:-1].isprintable(), words
            assert found in (1, 3), words


def test_a_daemon_that_says_less_than_this_release_asks_for_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    with answering(tmp_path / "run" / "cloudd.sock", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"):
        assert main(["status", "--state", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("is of another version; restart it\n") == 1


def test_an_output_that_has_no_room_or_no_reader_is_no_traceback() -> None:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "cloudd.cli.main", "version"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environ)
    assert (done.returncode, done.stderr) == (1, "cloudd: No space left on device\n")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False, env=environ)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
