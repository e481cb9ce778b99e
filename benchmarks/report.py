"""What every benchmark says at its end: a table for people, and a JSON file for machines."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the two options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes: ends within 60 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    return parser


def format_value(value: Any) -> str:
    """Four significant digits for a float, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """The rows as text, columns aligned; columns default to the keys of all rows in order of appearance."""
    names = list(columns) if columns is not None else list(dict.fromkeys(key for row in rows for key in row))
    cells = [names] + [[format_value(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    left = [all(not isinstance(row.get(name), int | float) for row in rows) for name in names]
    lines = [
        "  ".join(
            c.ljust(w) if keep_left else c.rjust(w) for c, w, keep_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def transposed(rows: Sequence[Row], key: str) -> str:
    """One column a row, headed by its `key`: for few rows with many figures."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != key))
    flipped = [{"": name, **{str(row[key]): row.get(name) for row in rows}} for name in names]
    return table(flipped)


def machine() -> dict[str, Any]:
    """Where the figures come from; without it no figure means anything."""
    return {
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def write_json(path: Path | None, name: str, figures: Mapping[str, Any], *, quick: bool = False) -> None:
    """Write `figures` with the benchmark's name, its time and the machine; nothing if `path` is None."""
    if path is None:
        return
    report = {"benchmark": name, "quick": quick, "at": time.time(), "machine": machine(), **figures}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
