"""`cloudd train --task anomaly` and `--task embedding`: a package in closed form, in seconds or minutes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cloudd.cli import making
from edgekit.packages import PackageError, check_name
from edgekit.text import printable

if TYPE_CHECKING:
    from cloudd.frozen import Made
    from cloudd.train import Share
    from edgekit.datasets.dataset import Dataset

TASKS = ("labels", "anomaly", "embedding")
OWN = {"labels": (), "anomaly": ("size", "seed", "good", "false_alarms", "placement"), "embedding": ("size", "seed")}
"""Options that a task has besides those of all."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What these tasks are asked with."""
    parser.add_argument(
        "--task",
        choices=TASKS,
        default="labels",
        help="learn what labels say (default), what good parts look like (anomaly), or to tell identities apart "
        "(embedding)",
    )
    anomaly = parser.add_argument_group("anomaly")
    anomaly.add_argument(
        "--good",
        default="",
        metavar="LABEL",
        help="of labelled data: the label of good parts; all others only tell how many anomalies are found",
    )
    anomaly.add_argument(
        "--false-alarms",
        type=_false_alarms,
        default=0.05,
        metavar="SHARE",
        help="of good parts that may be called anomalous (0.05, for which 19 pictures are needed; 0.01 needs 99)",
    )
    anomaly.add_argument(
        "--placement",
        choices=("auto", "fixed", "free"),
        default="auto",
        help="do parts lie alike, or can be laid so (fixed), or anywhere (free); auto looks",
    )


def do(args: argparse.Namespace) -> int:
    """Learn, judge, seal, and register if that was asked for."""
    from cloudd import frozen, train  # the other verbs must not wait for numpy and the runtime
    from edgekit.datasets.dataset import DatasetError
    from edgekit.runtimes import ModelError

    line = making.Line()
    try:
        _check(args)
        os.nice(making.NICE)
        dataset = _read(args)
        out = args.out or Path()
        if args.task == "anomaly":
            wishes = frozen.AnomalyWishes(
                size=args.size,
                placement=None if args.placement == "auto" else args.placement,
                false_alarms=args.false_alarms,
                good=args.good,
                seed=args.seed,
            )
            made = frozen.learn_anomaly(args.model, args.version, dataset, wishes, out, line.show)
        else:
            told = frozen.EmbeddingWishes(size=args.size, seed=args.seed)
            made = frozen.learn_embedding(args.model, args.version, dataset, told, out, line.show)
    except (train.TrainError, DatasetError, PackageError, ModelError) as error:
        return line.refused(error)
    finally:
        line.clear()
    return making.made(args, made, made.package, _show)


def _check(args: argparse.Namespace) -> None:
    """Raise TrainError for options of another task, PackageError for a name, or a package that is there."""
    from cloudd.train import TrainError

    if args.resume is not None:
        raise TrainError(f"--task {args.task} needs no --resume: it takes seconds; name the pictures with --data")
    if not args.model:
        raise TrainError("name the new model: --model NAME")
    check_name(args.model, key="--model")
    common_options = ("model", "version", "out")
    for name, default in args.at_begin.items():
        if name not in (*common_options, *OWN[args.task]) and getattr(args, name) != default:
            raise TrainError(f"--{name.replace('_', '-')} does not belong to --task {args.task}")
    check_unused(args)
    out, ref = args.out or Path(), f"{args.model}@{args.version}"
    if (out / ref).exists():
        raise PackageError(f"{out / ref} is there already; give the new package another --version")


def check_unused(args: argparse.Namespace) -> None:
    """Raise TrainError for options of --task anomaly with another task."""
    from cloudd.train import TrainError

    if args.task != "anomaly" and (args.good or args.placement != "auto" or args.false_alarms != 0.05):
        raise TrainError("--good, --false-alarms and --placement belong to --task anomaly")


def _read(args: argparse.Namespace) -> Dataset:
    """Labelled pictures; for an anomaly without --good a folder of good parts, whose folders are lots."""
    from edgekit.datasets.formats import read_dataset
    from edgekit.datasets.formats.files import Row, collect, pictures_in

    source: Path = args.data
    if args.task != "anomaly" or args.good or not source.is_dir():
        return read_dataset(source)
    rows = [Row(path.name, "normal") for path in pictures_in(source)]
    for folder in sorted(one for one in source.iterdir() if one.is_dir() and not one.name.startswith(".")):
        rows += [Row(f"{folder.name}/{path.name}", "normal", group=folder.name) for path in pictures_in(folder)]
    return collect(source, rows, source)


def _false_alarms(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share < 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is no share of the good parts; write a number such as 0.05")
    return share


def _show(made: Made, registered: bool) -> None:
    from cloudd.frozen import AnomalyFigures, EmbeddingFigures

    recipe = made.record.recipe
    width, height = recipe["size"]
    print(f"{made.model}: {width}x{height} pixels, {made.bytes / 1e6:.2f} MB.")
    if made.record.task == "anomaly":
        figures = msgspec.convert(made.record.figures, AnomalyFigures)
        how = "lie alike" if recipe["placement"] == "fixed" else "lie anywhere"
        print(f"Learned from {figures.good} good parts that {how}; each was judged by a model that had not seen it:")
        print(f"  called anomalous: {_text(figures.false_alarms)} ({recipe['false_alarms']:g} was asked for)")
        for label, found in figures.found.items():
            print(f"  found of {printable(label)}: {_text(found)}")
        if figures.auroc is not None:
            print(f"  an anomalous part scores above a good one in {figures.auroc:.1%} of all pairs (AUROC)")
        if figures.unlike:
            print(f"  {figures.unlike} good parts could not be laid over the others and count as anomalous")
    else:
        said = msgspec.convert(made.record.figures, EmbeddingFigures)
        print(f"Learned from {said.pictures} pictures of {said.identities} identities; each was judged by a model that")
        print("had not seen it:")
        print(f"  nearest to its own: {_text(said.nearest)}")
        print(f"  at the threshold {said.threshold:g}, not recognised: {_text(said.missed)}")
        print(f"  at the threshold {said.threshold:g}, taken for another: {_text(said.taken)}")
    if not made.package:
        print(f"Refused: {printable(made.reason)}. There is no package.")
    elif registered:
        print(f"{made.model} is in {made.package} and registered.")
    elif made.record.task == "anomaly":
        print(f"{made.model} is in {made.package}; on the device: edged services add {made.package}")
    else:
        name = made.model.partition("@")[0]
        print(
            f"{made.model} is in {made.package}; on the device: edged gallery enrol {name} DIR --package {made.package}"
        )


def _text(one: Share) -> str:
    value = one.value
    return f"{one.hits} of {one.trials}" + (f" ({one.low:.1%} to {one.high:.1%})" if value is not None else "")
