"""`cloudd compress`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cloudd.cli import common, making
from edgekit.packages import PackageError, open_package
from edgekit.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudd.compress import Outcome
    from edgekit.datasets.dataset import Dataset

_DETAILS = """\
  cloudd compress ./solder-small --data ./pictures
  cloudd compress ./solder-small --data ./pictures --quick
  cloudd compress solder-small --data joints.csv --group board --train-data ./old-pictures --register

A fifth of the pictures sets the ranges of the 8-bit variants, the others judge: the model and each variant answer the
same pictures, 500 at least. A variant is kept if, at 95 % confidence, the accuracy falls by at most one point, no class
is more than two points worse, every answer is usable, and no more would have to go to the cloud. Everything else is
refused with the reason. The new package is NAME@VERSION in the folder --out; in it compressed/lineage.json says what
every variant came from and how it was judged.

Variants: u8s8 (8 bits, for x86), s8s8 (8 bits, for Arm), fp16 (for GPUs), and two with half the channels in every
layer, taught to answer as the model does: pruned (float) and pruned-u8s8 (8 bits, for x86). Teaching takes minutes; it
uses the fifth that does not judge, and --train-data. --quick leaves those two out. How fast a variant is depends on the
device: edged times all of them on its own silicon and takes the best. The times shown here are this host's.

The pictures are a folder for each label (pictures/LABEL/*.jpg), or a CSV file with the columns file and label. Use
pictures that the model was not trained on. The daemon need not run for a model in a directory.

Exit status: 0 at least one variant was kept, 1 none was or something is wrong, 2 wrong usage, 3 the daemon is needed
but not reachable."""


def add(verbs: common.Verbs) -> None:
    """Register the verb."""
    parser = common.verb(
        verbs, "compress", "Make smaller variants of a model and keep those that answer as well.", _do, _DETAILS
    )
    parser.add_argument(
        "model", metavar="MODEL", help="directory of a package, or NAME or NAME@VERSION of a registered model"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR|CSV", help="labelled pictures: a folder a label, or a CSV file"
    )
    parser.add_argument(
        "--group",
        default="",
        metavar="COLUMN",
        help="column of the CSV whose equal values stay together, such as the board: its pictures resemble each other",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder that gets the new package (this folder)"
    )
    parser.add_argument("--version", type=making.version, metavar="VERSION", help="of the new package (1 becomes 1-c1)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--variants", type=_kinds, default=None, metavar="LIST", help="what to try, such as u8s8,fp16 (all)"
    )
    which.add_argument("--quick", action="store_true", help="try only what needs no training")
    parser.add_argument(
        "--train-data",
        type=Path,
        metavar="DIR|CSV",
        help="more pictures to teach with, such as those that the model was trained on; those that judge are left out",
    )
    parser.add_argument(
        "--train-minutes",
        type=_minutes,
        metavar="M",
        help="computing time for a narrower network at most (5); a second, wider one is taught if the first is refused",
    )
    parser.add_argument(
        "--faster-here",
        action="store_true",
        help="refuse as well what is not 10 %% faster on this host, for a model that this host itself runs",
    )
    parser.add_argument(
        "--pictures", type=_pictures, metavar="N", help="how many pictures judge at most, from 500 up (5000)"
    )
    parser.add_argument("--register", action="store_true", help="register the new package with the daemon")


def _do(args: argparse.Namespace) -> int:
    from cloudd import compress  # the other verbs must not wait for numpy and the runtime
    from edgekit.datasets.dataset import DatasetError
    from edgekit.runtimes import ModelError

    line = making.Line()
    try:
        package = open_package(making.directory(args))
        os.nice(making.NICE)
        wishes = {
            "kinds": compress.QUICK if args.quick else args.variants,
            "held_out": args.pictures,
            "lessons": _lessons(args, package.labels),
            "seconds": args.train_minutes and args.train_minutes * 60.0,
        }
        request = compress.Request(
            package=package,
            dataset=compress.read_dataset(args.data, package.labels, args.group),
            out=args.out,
            version=args.version or compress.next_version(package.manifest.version),
            faster_here=args.faster_here,
            **{name: value for name, value in wishes.items() if value is not None},
        )
        outcome = compress.compress(request, line.show)
    except (compress.CompressError, DatasetError, PackageError, ModelError) as error:
        return line.refused(error)
    finally:
        line.clear()
    return making.made(args, outcome, outcome.package, _show)


def _lessons(args: argparse.Namespace, labels: Sequence[str]) -> Dataset | None:
    from cloudd import compress

    if args.train_data is None:
        return None
    return compress.read_dataset(args.train_data, labels, "" if args.train_data.is_dir() else args.group)


def _show(outcome: Outcome, registered: bool) -> None:
    lineage = outcome.lineage
    data = lineage.data
    print(
        f"{lineage.source.model}: {data.held_out} pictures judged and {data.calibration} others calibrated, "
        f"of {data.pictures}."
    )
    common.show_table(
        ("VARIANT", "SIZE", "HERE", "ACCURACY", "DROP", "VERDICT"), [_float_row(outcome), *_rows(outcome)], ""
    )
    for made in lineage.variants:
        if made.reason:
            print(f"{made.kind} {printable(made.reason)}.")
    judged = next((made.gate for made in lineage.variants if made.gate is not None), None)
    if judged is not None and judged.few:
        few = ", ".join(f"{printable(name)} ({count})" for name, count in judged.few.items())
        print(f"Too few pictures to judge these classes on their own: {few}.")
    if not outcome.package:
        print("Nothing was kept; there is no new package.")
    elif registered:
        print(f"{outcome.model} is in {outcome.package} and registered.")
    else:
        print(f"{outcome.model} is in {outcome.package}; hand it out with: cloudd models add {outcome.package}")


def _float_row(outcome: Outcome) -> tuple[str, ...]:
    speed = outcome.speeds.get("")
    judged = next((made.gate for made in outcome.lineage.variants if made.gate is not None), None)
    return (
        "float",
        f"{outcome.source_bytes / 1e6:.2f} MB",
        f"{speed.p50_ms:.3g} ms" if speed else "-",
        f"{judged.old_accuracy:.1%}" if judged else "-",
        "",
        "",
    )


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """One row a variant that was tried."""
    rows: list[tuple[str, ...]] = []
    base = outcome.speeds.get("")
    for made in outcome.lineage.variants:
        speed, gate = outcome.speeds.get(made.kind), made.gate
        rows.append(
            (
                made.kind,
                f"{made.bytes / 1e6:.2f} MB ({made.bytes / outcome.source_bytes:.2f}x)" if made.bytes else "-",
                f"{speed.p50_ms:.3g} ms ({base.p50_ms / speed.p50_ms:.1f}x as fast)" if speed and base else "-",
                f"{gate.new_accuracy:.1%}" if gate else "-",
                f"{gate.drop * 100:+.2f} points (under {gate.drop_bound * 100:.2f})" if gate else "-",
                "kept" if made.accepted else "refused",
            )
        )
    return rows


def _kinds(text: str) -> tuple[str, ...]:
    """Kinds of variant, without repetition. Raises argparse.ArgumentTypeError."""
    from cloudd.compress import KINDS

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in KINDS:
            raise argparse.ArgumentTypeError(f"{name!r} is no kind of variant; known are {', '.join(KINDS)}")
    return names


def _pictures(text: str) -> int:
    number = common.count(text)
    if number < 500:
        raise argparse.ArgumentTypeError("at least 500 pictures are needed to judge")
    return number


def _minutes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.1 <= number <= 1440.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 0.1 to 1440 minutes")
    return number
