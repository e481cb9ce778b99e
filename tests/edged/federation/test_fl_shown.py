"""What people see: `edged fl`, the local API and the card of the status page."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from fl_stage import NOW, Plant, Stage, all_of, edges

from edged.cli.main import main
from edged.federation.book import AUDIT, FOLDER, Book
from edged.federation.notes import JobNote, JobView
from edged.status.federation_page import federation_card
from edged.status.state import StatusState
from edgekit.identity import generate_key
from edgekit.secagg import signatures
from tests.support.edged import Edged

KEY = signatures.point(generate_key().public_key()).hex()
JOB = "3f2a9c" + "0" * 26


def note(**changes: object) -> JobNote:
    one = JobNote(job=JOB, service="solder", model="small@1", secure=True, private=True, rounds=20, version=5)
    return msgspec.structs.replace(one, **changes)


def fl(state: Path, *words: str) -> int:
    return main(["fl", *words, "--state", str(state)])


def test_the_command_line_shows_jobs_budgets_policy_and_leaves_a_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "edged.toml").write_text(
        f'[federation]\nenabled = true\nepsilon = 8\nmin_owners = 2\n[federation.plants]\nnorth = "{KEY}"\n'
    )
    book = Book(state, lambda: NOW)
    book.note(note(stage="waiting", text="not enough devices"), ("alarm", "cloudd showed two survivor sets"))
    book.keep_account("solder", b"", 3.25)
    book.close()
    with Edged(state):
        assert fl(state, "status") == 0
        shown = capsys.readouterr().out
        assert "3f2a9c000000" in shown and "5/20" in shown and "epsilon 3.25 of 8" in shown
        assert "alarm: cloudd showed two survivor sets" in shown and "link to cloudd" in shown
        assert fl(state, "status", "--json") == 0
        assert json.loads(capsys.readouterr().out)["spent"] == {"solder": 3.25}
        assert fl(state, "policy") == 0
        shown = capsys.readouterr().out
        assert "[federation]" in shown and "min_owners = 2" in shown and f'north = "{KEY}"' in shown
        assert fl(state, "audit") == 1 and "joined no cloudd" in capsys.readouterr().err
        assert fl(state, "refuse", "ffffff") == 1
        assert fl(state, "refuse", "3f2a", "--reason", "not with our parts") == 0
        assert fl(state, "forgive") == 1
        capsys.readouterr()
        assert fl(state, "status") == 0
        assert "not with our parts" in capsys.readouterr().out


def test_without_a_table_the_command_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Edged(tmp_path / "state"):
        assert fl(tmp_path / "state", "status") == 1
        assert "no table [federation]" in capsys.readouterr().err
    assert not (tmp_path / "state" / FOLDER).exists()


def test_a_lost_ledger_keeps_the_device_out_until_a_person_says_so(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / AUDIT).write_bytes(b"")
    book = Book(tmp_path, lambda: NOW)
    with pytest.raises(ValueError, match="forgive"):
        book.check()
    book.close()
    again = Book(tmp_path, lambda: NOW)
    assert again.forgive() and not again.forgive()
    again.check()
    again.close()


def test_a_damaged_ledger_keeps_the_device_out(tmp_path: Path) -> None:
    book = Book(tmp_path, lambda: NOW)
    book.settle(bytes(32), bytes(32))
    book.close()
    (tmp_path / FOLDER / "book.db").write_bytes(b"this is no database " * 400)
    again = Book(tmp_path, lambda: NOW)
    with pytest.raises(ValueError, match="damaged"):
        again.check()
    again.close()


async def test_the_ledger_is_written_once_and_never_changed(tmp_path: Path) -> None:
    book = Book(tmp_path, lambda: NOW)
    assert book.settle(b"k" * 32, b"1" * 32) == b"1" * 32
    with pytest.raises(RuntimeError, match="stop"), book.together():
        assert book.settle(b"n" * 32, b"2" * 32) == b"2" * 32
        raise RuntimeError("stop")
    assert book.settle(b"n" * 32, b"3" * 32) == b"3" * 32, "what was not durable does not count"
    assert book.settle(b"k" * 32, b"4" * 32) == b"1" * 32
    book.close()
    again = Book(tmp_path, lambda: NOW)
    assert again.settle(b"k" * 32, b"5" * 32) == b"1" * 32
    again.close()


def test_the_card_escapes_and_shows_what_a_job_does() -> None:
    state = StatusState(version="1", name="n", device_id="d", state_dir="/", started_at=0.0, now=1.0)
    assert federation_card(state) == ""
    views = [
        JobView(note=note(text="<b>round</b>", stage="round", contributed=4), running=True, listed=True),
        JobView(note=note(secure=False, private=False), why="federation.plain is false"),
    ]
    card = federation_card(msgspec.structs.replace(state, federation=views))
    assert "&lt;b&gt;round" in card and "4 with this device" in card
    assert "not masked" in card and "federation.plain is false" in card


async def test_a_job_can_be_shown_while_it_goes_on(tmp_path: Path) -> None:
    stage = Stage(Plant(3), rounds=2)
    devices = edges(tmp_path, stage)
    await all_of(devices)
    book = Book(devices[0].root, lambda: NOW)
    (one,) = book.jobs()
    assert (one.version, one.contributed, one.samples) == (2, 2, 40)
    assert [event.level for event in book.events()] == ["info"] * len(book.events())
    book.close()
