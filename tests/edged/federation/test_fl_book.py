"""The book between two processes: what the supervisor writes is there for the next child, whichever ends first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edged.federation.book import Book
from edged.federation.notes import JobNote

CHILD = """
import sys
from pathlib import Path
from edged.federation.book import Book
from edged.federation.notes import JobNote
book = Book(Path(sys.argv[1]))
print(book.leaving("solder"), sorted(book.agreed()))
book.note(JobNote(job=sys.argv[2], service="solder", model="m@1", secure=True, private=False, rounds=1, stage="round"))
book.close()
"""


def child(root: Path, job: str) -> str:
    """Another process opens the book, notes something and ends."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(root), job], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_what_the_supervisor_writes_after_a_child_has_ended_is_not_lost(tmp_path: Path) -> None:
    book = Book(tmp_path)
    assert child(tmp_path, "one") == "[]"
    assert (book.folder / "book.db-wal").exists(), "the child has not taken the log away"
    book.leave("solder", "we go")
    book.agree("two")
    assert child(tmp_path, "two") == "we go ['two']"
    assert {note.job for note in book.jobs()} == {"one", "two"}, "and it sees what children write"
    book.close()
    again = Book(tmp_path)
    assert again.leaving("solder") == "we go" and again.agreed() == {"two"}
    again.close()


def test_a_note_that_fails_leaves_the_book_usable(tmp_path: Path) -> None:
    book = Book(tmp_path)
    note = JobNote(job="one", service="solder", model="m@1", secure=True, private=False, rounds=1)
    with pytest.raises(TypeError):
        book.note(note, ("info", None))  # type: ignore[arg-type]
    assert book.jobs() == [], "all of it or nothing"
    book.note(note, ("info", "works"))
    assert [one.text for one in book.events()] == ["works"]
    book.close()
