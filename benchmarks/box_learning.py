"""A detector on real boards learns a new kind of defect from few boxes, and is to keep what it knew.

    EDGED_REAL_DATA=... python -m benchmarks.box_learning [--quick] [--json FILE] [--plot FILE.svg]

Boards of `pcb-bare`, 640 x 640 pixels in sixteen tiles of 192, each shown to a centre-point detector at 96 x 96. One
kind of defect, NEW, is taken out of all boards by the faultless templates, and `cloudd train` makes a detector of the
other five. Then it occurs: 20, 50 or all 58 boxes of it on boards that teach, with all other boxes of these boards; the
other boards come without it and are replayed. The boards that choose (8) and judge (16) show it and taught nobody.

Each row is one job of `edged.train`, from the sample store to the sealed candidate, with the verdict of its judge; the
rung `cloud` is that and `cloudd.retraining`. Recalls are of the boards that judge, at an IoU of 0.5, by what the
service reports; the old kinds by their mean. The spread is that of the seeds, which draw the boards that show NEW. One
thread.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from benchmarks import report
from benchmarks.box_learning_boards import Board, arriving, load, trained
from benchmarks.box_learning_jobs import Device, Seen, candidate, seen
from benchmarks.federated_plot import Panel, picture
from benchmarks.pictures import data_root
from edgekit.messages.learning import TrainRung
from edgekit.packages import Package

NEW = "mousebite"
ALL = 58
"""Boxes of NEW on the boards that teach."""
RUNGS: tuple[tuple[TrainRung, tuple[int, ...], int], ...] = (
    ("last-blocks", (20, 50, ALL), 3),
    ("full", (50,), 3),
    ("cloud", (50,), 1),
)
"""Rung, numbers of boxes, seeds."""
EPOCHS = 48
CLOUD_SECONDS = 90.0
"""Far less than the hours of `retraining_hours`; only so that the whole ends within 15 minutes."""
COLUMNS = ["case", "new_recall", "old_before", "old_after", "false_before", "false_after", "seconds", "accepted"]


def row(
    base: Package, before: Seen, boards: Sequence[Board], rung: TrainRung, labels: int, seed: int, cloud_seconds: float
) -> dict[str, Any]:
    """One job: `labels` boxes of NEW, on boards that `seed` draws. None of what a candidate would show without one."""
    kinds = sorted({one.label for board in boards for one in board.boxes})
    judging = [board for board in boards if board.part == "test"]
    with tempfile.TemporaryDirectory() as folder:
        device = Device(Path(folder), base, arriving(boards, NEW, labels, seed))
        began = time.perf_counter()
        done = device.climb(rung, seed, cloud_seconds)
        seconds = time.perf_counter() - began
        after = None if isinstance(done, str) else seen(candidate(done), judging, kinds)
    verdict = None if isinstance(done, str) else done.verdict
    return {
        "case": f"{rung}, {labels} boxes, seed {seed}",
        "rung": rung,
        "labels": labels,
        "seed": seed,
        "new_recall": after.recall[NEW] if after else None,
        "old_before": before.old(NEW),
        "old_after": after.old(NEW) if after else None,
        "false_before": before.false_alarms,
        "false_after": after.false_alarms if after else None,
        "seconds": seconds,
        "accepted": verdict is not None and verdict.accepted,
        "reason": done if isinstance(done, str) else done.verdict.reason,
    }


def measured(base: Package, boards: Sequence[Board], quick: bool) -> list[dict[str, Any]]:
    """The rows of all jobs; `quick`: of one."""
    kinds = sorted({one.label for board in boards for one in board.boxes})
    before = seen(base, [board for board in boards if board.part == "test"], kinds)
    rungs: Sequence[tuple[TrainRung, tuple[int, ...], int]] = (("last-blocks", (20,), 1),) if quick else RUNGS
    jobs = [(rung, labels, seed) for rung, numbers, seeds in rungs for labels in numbers for seed in range(seeds)]
    return [row(base, before, boards, *one, CLOUD_SECONDS) for one in jobs]


def made(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with a candidate."""
    return [one for one in rows if one["new_recall"] is not None]


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the seeds with a candidate, for each rung and number of boxes; `accepted` is a share."""
    found = []
    for rung, labels in dict.fromkeys((one["rung"], one["labels"]) for one in rows):
        mine = [one for one in made(rows) if (one["rung"], one["labels"]) == (rung, labels)]
        if not mine:
            continue
        figures = {key: statistics.mean(float(one[key]) for one in mine) for key in COLUMNS[1:]}
        found.append({"case": f"{rung}, {labels} boxes", **figures})
    return found


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """An SVG: recall of the new kind and of the old ones over the boxes of the new one; at 0 the model as it was."""
    rows, panels = made(rows), []
    for title, key, was in (
        ("new kind of defect", "new_recall", ""),
        ("the five old kinds", "old_after", "old_before"),
    ):
        lines: dict[str, list[list[tuple[float, float]]]] = {}
        for rung in dict.fromkeys(one["rung"] for one in rows):
            seeds = dict.fromkeys(one["seed"] for one in rows if one["rung"] == rung)
            mine = [[one for one in rows if (one["rung"], one["seed"]) == (rung, seed)] for seed in seeds]
            lines[rung] = [
                [(0.0, of_one[0][was] if was else 0.0), *((one["labels"], one[key]) for one in of_one)]
                for of_one in mine
            ]
        panels.append(Panel(title, lines))
    return picture(panels, f"boxes of the new kind ({NEW})", "recall")


def main(argv: list[str] | None = None) -> None:
    parser = report.arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the curves as SVG")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    boards = load(data_root())
    with tempfile.TemporaryDirectory() as folder:
        base = trained(boards, NEW, 4 if options.quick else EPOCHS, Path(folder))
        rows = measured(base, boards, quick=options.quick)
    print(report.table(rows, COLUMNS))
    print()
    print(report.table(means(rows), COLUMNS))
    for one in rows:
        if one["reason"]:
            print(f"{one['case']}: {one['reason']}")
    if options.plot is not None:
        options.plot.write_text(plot(rows), encoding="utf-8")
    report.write_json(options.json, "box_learning", {"cases": rows, "means": means(rows)}, quick=options.quick)


if __name__ == "__main__":
    main()
