"""`cloudd train`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudd.cli import common, making, train_frozen, train_options
from cloudd.client import ClientError
from edgekit.packages import PackageError, check_name
from edgekit.text import printable

if TYPE_CHECKING:
    from cloudd.train import Job, LabelFigures, Outcome, Recipe, Share, Training
    from edgekit.datasets.dataset import Dataset
    from edgekit.training import EpochDone

_PAUSED = 130
AT_BEGIN = [
    *("model", "version", "out", "group", "merge", "architecture", "size", "colour", "device_budget"),
    *("epochs", "time", "balance", "symmetry", "seed", "cpu_share"),
]
"""What is decided when a training begins and stays so."""
_ARCHITECTURES = ("tiny_cnn", "mobilenet_v2", "resnet18", "centre_point")

_DETAILS = """\
  cloudd train --data ./pictures --model solder
  cloudd train --data joints.csv --group board --merge defect=insufficient,partial --model solder --register
  cloudd train --data annotations.json --model shorts --time 2h
  cloudd train --resume ./solder@1.training
  cloudd train --task anomaly --data ./good-bottles --model bottle
  cloudd train --task embedding --data ./parts --model parts

Makes the first model of a new service from labelled pictures; nothing else is needed. The pictures are a folder for
each label (pictures/LABEL/*.jpg), a CSV file with the columns file and label, or COCO, Pascal VOC or YOLO. Labels for
whole pictures give a classifier, boxes a detector.

Seven tenths of the pictures teach, one tenth chooses the best of a few epochs, two tenths judge at the end, unless the
data says which picture belongs to train, val or test. With --group all pictures of one board stay on one side; without
it a model may look better than it is. What is no better than always saying the most frequent label (95 % sure) is
refused.

Everything follows from the pictures and --seed. What is not said is chosen to suit the pictures: the network, the size
of its input, how often each picture is shown. The new package is NAME@VERSION in the folder --out; in it
trained/lineage.json says what it was made from and how it was judged.

With --task anomaly the pictures show good parts only, in one folder or a folder for each lot: the model tells where a
part is not like them. With --task embedding there is a folder for each identity, and the model tells identities apart,
also such as it has never seen. Both take no training: features are frozen, the rest is computed.

Ctrl-C pauses. A training that was paused, killed or lost its power goes on with --resume, and gives the same model.

Exit status: 0 the model is made, 1 it was refused or something is wrong, 2 wrong usage, 3 the daemon is needed but not
reachable, 130 paused."""


def add(verbs: common.Verbs) -> None:
    """Register the verb."""
    parser = common.verb(verbs, "train", "Make the first model of a service from labelled pictures.", _do, _DETAILS)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data",
        type=Path,
        metavar="DIR|CSV|JSON",
        help="labelled pictures: a folder a label, a CSV file, COCO's JSON, or a folder of Pascal VOC or YOLO",
    )
    what.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a training, by its .training folder")
    parser.add_argument("--model", metavar="NAME", help="of the new package")
    parser.add_argument("--version", type=making.version, default="1", metavar="VERSION", help="of the new package (1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder that gets the new package (this folder)")
    parser.add_argument("--register", action="store_true", help="register the new package with the daemon")
    train_frozen.add_options(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--group",
        default="",
        metavar="COLUMN",
        help="column of the CSV, or key of COCO's pictures, whose equal values stay together, such as the board",
    )
    data.add_argument(
        "--merge",
        type=train_options.merge,
        action="append",
        default=[],
        metavar="NEW=OLD,OLD",
        help="give pictures with these labels one label; may be repeated",
    )
    network = parser.add_argument_group("network")
    network.add_argument("--architecture", choices=_ARCHITECTURES, help="what network (by the pictures)")
    network.add_argument(
        "--size", type=train_options.size, metavar="WxH", help="of its input, pixels, such as 64 or 320x240"
    )
    network.add_argument("--colour", choices=("grey", "rgb"), help="of its input (grey if the pictures are)")
    network.add_argument(
        "--device-budget",
        type=train_options.macs,
        metavar="N",
        help="multiply-adds that the device may spend on one picture, such as 50M: the widest network below is taken",
    )
    course = parser.add_argument_group("training")
    course.add_argument(
        "--epochs", type=train_options.epochs, metavar="N", help="how often all pictures are shown at most"
    )
    course.add_argument(
        "--time",
        type=train_options.seconds,
        metavar="TIME",
        help="of computing, after which training ends: 90, 30m, 2h",
    )
    course.add_argument(
        "--balance",
        choices=("none", "root", "full"),
        help="show rare labels as often as they occur, by the root of that (default), or all labels equally often",
    )
    course.add_argument(
        "--symmetry",
        choices=("none", "mirror", "any"),
        default="none",
        help="what a picture could be as well: its mirror image, or any mirrored quarter turn (none)",
    )
    course.add_argument("--seed", type=train_options.seed, default=0, metavar="N", help="of everything random (0)")
    course.add_argument(
        "--threads", type=train_options.threads, metavar="N", help="of one step (half of the processors)"
    )
    course.add_argument(
        "--cpu-share",
        type=train_options.share,
        default=1.0,
        metavar="SHARE",
        help="of the time that training may be computing (1)",
    )
    parser.set_defaults(at_begin={name: parser.get_default(name) for name in AT_BEGIN})


def _do(args: argparse.Namespace) -> int:
    if args.task != "labels":
        return train_frozen.do(args)
    from cloudd import train  # the other verbs must not wait for numpy and the runtime
    from edgekit.architectures import ArchitectureError
    from edgekit.autodiff.errors import AutodiffError
    from edgekit.datasets.dataset import DatasetError
    from edgekit.runtimes import ModelError
    from edgekit.training import TrainingError

    line = making.Line()
    try:
        train_frozen.check_unused(args)
        if args.resume is None:
            job, dataset, folder = _begin(args, line)
        else:
            job, dataset, folder = _resume(args, line)
        os.nice(making.NICE)
        threads = args.threads or max(1, len(os.sched_getaffinity(0)) // 2)
        with train.Training(
            job, dataset, folder, threads=threads, clock=time.monotonic, progress=line.show
        ) as training:
            paused = _run(training, line)
            if paused:
                line.clear()
                print(f"Paused: {paused}. Go on with: cloudd train --resume {folder}", file=sys.stderr)
                return _PAUSED
            outcome = train.finish(training, folder.absolute().parent, line.show)
    except (
        train.TrainError, DatasetError, TrainingError, ArchitectureError, AutodiffError, PackageError, ModelError
    ) as error:  # fmt: skip
        return line.refused(error)
    finally:
        line.clear()
    _remove(folder)
    return making.made(args, outcome, outcome.package, _show)


def _begin(args: argparse.Namespace, line: making.Line) -> tuple[Job, Dataset, Path]:
    from cloudd import train
    from edgekit.datasets.formats import read_dataset

    if not args.model:
        raise train.TrainError("name the new model: --model NAME")
    check_name(args.model, key="--model")
    out = args.out or Path()
    ref = f"{args.model}@{args.version}"
    if (out / ref).exists():
        raise PackageError(f"{out / ref} is there already; give the new package another --version")
    if args.register:
        _check_new(args, ref)
    line.show("looking", 0, 0)
    merge = {old: new for new, olds in args.merge for old in olds}
    dataset = train.merged(read_dataset(args.data, args.group), merge)
    wishes = train.Wishes(
        architecture=args.architecture,
        size=args.size,
        colour=args.colour,
        epochs=args.epochs,
        seconds=args.time,
        balance=args.balance,
        symmetry=args.symmetry,
        macs=args.device_budget,
        cpu_share=args.cpu_share,
        seed=args.seed,
    )
    parts = train.divide(dataset)
    recipe = train.choose(dataset, parts.train, wishes)
    job = train.Job(
        name=args.model,
        version=args.version,
        source=str(args.data.absolute()),
        group=args.group,
        merge=merge,
        digest=dataset.digest,
        recipe=recipe,
    )
    line.show("deriving", 0, 0)
    folder = train.begin(job, out)
    line.clear()
    counts = ", ".join(f"{len(pictures)} {name}" for name, pictures in parts.items())
    print(f"{ref}: {len(dataset.pictures)} pictures ({counts}), {_about(recipe)}", file=sys.stderr)
    return job, dataset, folder


def _resume(args: argparse.Namespace, line: making.Line) -> tuple[Job, Dataset, Path]:
    from cloudd import train
    from edgekit.datasets.formats import read_dataset

    for name, default in args.at_begin.items():
        if getattr(args, name) != default:
            raise train.TrainError(
                f"--{name.replace('_', '-')} was decided when the training began; with --resume only --threads, "
                "--register, --state and --json can be said"
            )
    job = train.read_job(args.resume)
    if args.register:
        _check_new(args, job.ref)
    line.show("looking", 0, 0)
    return job, train.merged(read_dataset(Path(job.source), job.group), job.merge), args.resume


def _check_new(args: argparse.Namespace, ref: str) -> None:
    """Raise PackageError, before hours of work, if the daemon has a package of this name and version."""
    try:
        common.client(args).get(common.path("models", ref))
    except ClientError as error:
        if error.status != 404:
            raise
        return
    raise PackageError(f"{ref} is registered already; give the new package another --version")


def _run(training: Training, line: making.Line) -> str:
    """Train to the end, which gives "", or until a signal, which gives why."""
    from edgekit.training import EpochDone, Paused, Rest, Started, StepDone

    epochs = training.job.recipe.settings.epochs
    steps = 0
    with _pausing(training):
        for event in training.run():
            if isinstance(event, Started):
                steps = event.steps
                if event.step:
                    line.clear()
                    print(f"going on after step {event.step} of {steps}", file=sys.stderr)
            elif isinstance(event, StepDone):
                line.show(f"epoch {event.epoch} of {epochs}", event.step, steps)
            elif isinstance(event, EpochDone):
                line.clear()
                print(_epoch(event, epochs), file=sys.stderr, flush=True)
            elif isinstance(event, Rest):
                time.sleep(event.seconds)
            elif isinstance(event, Paused):
                return event.reason
    return ""


@contextmanager
def _pausing(training: Training) -> Iterator[None]:
    """SIGINT and SIGTERM pause the training; a second one ends the process at once, as is safe at any time."""

    def pause(number: int, frame: Any) -> None:
        training.pause("it was interrupted" if number == signal.SIGINT else "it was told to end")
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, pause) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _about(recipe: Recipe) -> str:
    network = recipe.network
    return (
        f"{network.architecture}{'' if network.width == 1 else f' x {network.width:g}'}, "
        f"{network.input_width}x{network.input_height} {'grey' if network.channels == 1 else 'rgb'}, "
        f"{recipe.macs / 1e6:.3g} M multiply-adds, {recipe.settings.epochs} epochs at most"
    )


def _epoch(event: EpochDone, epochs: int) -> str:
    text = f"epoch {event.epoch} of {epochs}: loss {event.loss:.4f}"
    if event.evaluation is not None:
        figures = event.evaluation.figures
        if "ap50" in figures:
            text += f", val average precision {figures['ap50']:.1%}"
        else:
            text += f", val loss {figures['loss']:.4f}, balanced accuracy {figures['balanced_accuracy']:.1%}"
    return text + (", the best so far" if event.improved else "")


def _show(outcome: Outcome, registered: bool) -> None:
    lineage = outcome.lineage
    figures, data = lineage.figures, lineage.data
    print(
        f"{outcome.model}: {_about(lineage.recipe)}, {outcome.bytes / 1e6:.2f} MB; epoch {lineage.epoch} counts, "
        f"since {lineage.ended}."
    )
    boxes = figures.rival_right is None
    print(f"Judged on {figures.pictures} pictures that it never saw ({figures.confidence:.0%} ranges):")
    head = (
        "LABEL",
        "BOXES" if boxes else "PICTURES",
        "LEARNED FROM",
        "RECALL",
        "PRECISION",
        *(("AP50",) if boxes else ()),
    )
    learned = data.parts["train"].labels
    common.show_table(head, [_row(one, learned.get(one.label, 0)) for one in figures.labels], "")
    if boxes:
        print(f"Reported boxes that are true: {_text(figures.right)}. Boxes are reported from {lineage.report} on.")
    else:
        assert figures.rival_right is not None
        print(
            f"Right answers: {_text(figures.right)}; {printable(figures.rival)}: "
            f"{figures.rival_right / figures.pictures:.1%}."
        )
    blind = [printable(one.label) for one in figures.labels if not one.recall.hits]
    if blind:
        print(f"It never finds: {', '.join(blind)}. More pictures of these labels, or more epochs, may help.")
    if not outcome.package:
        print(f"Refused: {printable(figures.reason)}. There is no package.")
    elif registered:
        print(f"{outcome.model} is in {outcome.package} and registered.")
    else:
        print(f"{outcome.model} is in {outcome.package}; hand it out with: cloudd models add {outcome.package}")


def _row(one: LabelFigures, learned: int) -> tuple[str, ...]:
    row = (one.label, str(one.recall.trials), str(learned), _text(one.recall), _text(one.precision))
    return row if one.ap50 is None else (*row, f"{one.ap50:.1%}")


def _text(share: Share) -> str:
    if share.value is None:
        return "-"
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
