"""Results files: CSV that harms no spreadsheet, rotation by size, and what a restart finds in them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.capture.outputs import FileOutput, table
from edged.capture.outputs.lines import LineFile
from edgekit.messages import Decision, Verdict
from edgekit.outputs import Output
from tests.support.receivers import Events, decision


def csv_output(path: Path, **options: Any) -> FileOutput:
    return FileOutput(Output(kind="csv", path=str(path), **options), Events())


async def put(output: FileOutput, *decisions: Decision) -> None:
    for one in decisions:
        await output.write_durably(one, msgspec.json.encode(one))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


async def test_a_table_has_one_head_and_a_row_for_each_decision(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    first = csv_output(path)
    cloud = Verdict(label="bad", score=0.75, margin=0.5, model="large@2")
    await put(first, decision(1, timings_ms={"total": 12.3456}), decision(2, label="bad", decided="cloud", cloud=cloud))
    await first.close()
    again = csv_output(path)
    await put(again, decision(3, verdict="pass", certified=True, reason="no link, so here", captured_at=0.0))
    assert path.read_text().splitlines()[0] == ",".join(table.COLUMNS)
    one, two, three = rows(path)
    assert one == {
        "captured_at": "2027-01-15T08:00:01.000+00:00",
        "sample_id": "SAMPLE000001",
        "service": "solder",
        "serial": "board-1",
        "label": "good",
        "score": "0.900000",
        "verdict": "",
        "decided": "edge",
        "model": "m@1",
        "edge_label": "good",
        "edge_score": "0.900000",
        "cloud_label": "",
        "cloud_score": "",
        "certified": "no",
        "spooled": "no",
        "reason": "",
        "total_ms": "12.346",
    }
    assert (two["label"], two["cloud_label"], two["cloud_score"]) == ("bad", "bad", "0.750000")
    assert (three["verdict"], three["certified"], three["reason"]) == ("pass", "yes", "no link, so here")
    assert three["captured_at"] == ""
    assert path.stat().st_mode & 0o777 == 0o640
    await again.close()


@given(st.text(max_size=60), st.text(max_size=60), st.floats())
def test_no_text_becomes_a_formula_or_a_second_row(serial: str, label: str, captured_at: float) -> None:
    line = table.row(decision(1, serial=serial, label=label, captured_at=captured_at))
    assert b"\n" not in line and b"\r" not in line and b"\0" not in line
    (cells,) = csv.reader(io.StringIO(line.decode("utf-8"), newline=""))
    assert len(cells) == len(table.COLUMNS)
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in cells)
    assert table.sample_of(line, "solder") == "SAMPLE000001"
    assert table.sample_of(line, "another") == ""


@pytest.mark.parametrize("serial", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", " =HYPERLINK(0)"])
def test_formulas_become_text(serial: str) -> None:
    (cells,) = csv.reader([table.row(decision(1, serial=serial)).decode()])
    assert cells[table.COLUMNS.index("serial")].startswith("'")


async def test_files_are_rotated_by_size_and_only_so_many_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    lines = LineFile(path, Events(), max_bytes=1000, keep=2)
    for number in range(50):
        await lines.write_durably(b"%03d" % number + b"x" * 96)
    await lines.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.1", "out.jsonl.2"]
    kept = [
        line[:3]
        for name in ("out.jsonl.2", "out.jsonl.1", "out.jsonl")
        for line in (tmp_path / name).read_bytes().splitlines()
    ]
    assert kept == [b"%03d" % number for number in range(20, 50)]
    assert all(entry.stat().st_size <= 1000 for entry in tmp_path.iterdir())


async def test_two_workers_rotate_one_file_together(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    both = [LineFile(path, Events(), head=b"head\n", max_bytes=2000, keep=100) for _ in range(2)]
    for number in range(100):
        both[number % 2].write(b"%03d" % number + b"x" * 96)
        if number % 10 == 0:
            await both[0].write_durably(b"a" * 50)
    for lines in both:
        await lines.close()
    found: list[bytes] = []
    for entry in tmp_path.iterdir():
        head, *rest = entry.read_bytes().splitlines()
        assert head == b"head" and rest, entry
        found += rest
    assert sorted(line[:3] for line in found if line[:1] != b"a") == [b"%03d" % number for number in range(100)]


async def test_a_file_with_another_head_is_put_away(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("another,head\n1,2\n")
    output = csv_output(path)
    await put(output, decision(1))
    await output.close()
    assert (tmp_path / "trace.csv.1").read_text() == "another,head\n1,2\n"
    assert [row["sample_id"] for row in rows(path)] == ["SAMPLE000001"]


async def test_a_restart_finds_what_is_written_over_a_rotation(tmp_path: Path) -> None:
    table_file, json_file = tmp_path / "trace.csv", tmp_path / "out.jsonl"
    both = [
        csv_output(table_file, max_mb=0.002),
        FileOutput(Output(path=str(json_file), max_mb=0.002), Events()),
    ]
    for output in both:
        await put(output, *(decision(number) for number in range(1, 10)))
        known = output.written("solder")
        assert "SAMPLE000009" in known and len(known) >= 4, "also of the file before"
        assert output.written("another") == {}
        assert set(output.files()) >= set(tmp_path.glob(f"{output.files()[0].name}*"))
        assert (output.report().delivered, output.report().waiting) == (9, 0)
        await output.close()
    assert both[0].written("solder")["SAMPLE000009"] is None
    assert both[1].written("solder")["SAMPLE000009"] == decision(9)


async def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the directory should be")
    output = FileOutput(Output(path=str(tmp_path / "blocked" / "out.jsonl")), Events())
    output.write(decision(1), b"{}")
    import asyncio

    async with asyncio.timeout(5):
        while output.report().failing_since is None:
            await asyncio.sleep(0.01)
    assert output.report().problem == "Not a directory" or "exists" in output.report().problem
    await output.close()
    assert output.report().dropped == 1
