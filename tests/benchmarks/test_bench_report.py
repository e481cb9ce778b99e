from __future__ import annotations

import json
from pathlib import Path

from benchmarks import report


def test_a_table_aligns_its_columns_and_shows_what_is_missing() -> None:
    text = report.table([{"case": "a", "x": 0.123456, "n": 10}, {"case": "longer", "n": 2}])
    assert text.splitlines() == [
        "case         x   n",
        "------  ------  --",
        "a       0.1235  10",
        "longer       -   2",
    ]


def test_a_transposed_table_has_a_column_a_row() -> None:
    lines = report.transposed([{"case": "a", "x": 1}, {"case": "b", "x": 2}], "case").splitlines()
    assert lines[0].split() == ["a", "b"]
    assert lines[2].split() == ["x", "1", "2"]


def test_the_json_says_where_the_figures_come_from(tmp_path: Path) -> None:
    report.write_json(tmp_path / "deep" / "out.json", "joint", {"cases": [1]}, quick=True)
    written = json.loads((tmp_path / "deep" / "out.json").read_text())
    assert written["benchmark"] == "joint" and written["cases"] == [1] and written["quick"] is True
    assert written["machine"]["cpus"] >= 1
    report.write_json(None, "joint", {})
