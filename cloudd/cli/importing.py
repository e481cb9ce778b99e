"""`cloudd import`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudd.cli import common, making
from cloudd.client import ClientError
from edgekit.packages import PackageError
from edgekit.text import printable

if TYPE_CHECKING:
    from cloudd.importing import Outcome

NORMALISE = ("unit", "signed", "bytes", "imagenet", "caffe")
_MAX_LABELS = 1 << 20

_DETAILS = """\
  cloudd import model.onnx --model joints --labels labels.txt --normalise imagenet --pictures ./pictures
  cloudd import person.tflite --model people --labels people.txt --pictures ./pictures --register
  cloudd import faces.onnx --model faces --labels face.txt --detection head=ssd report=0.7 nms_iou=0.3 \\
      --input mean=127 scale=0.0078125 --pictures ./people
  cloudd import net.onnx --model parts --task embedding --normalise imagenet --pictures ./identities
  cloudd import padim.onnx --model bottle --task anomaly --normalise imagenet --pictures ./good
  cloudd import model.pt2 --model joints --labels labels.txt --normalise unit --pictures ./pictures \\
      --python ~/torch/bin/python

Makes a package of a model that was trained elsewhere: ONNX and TFLite as they are; TorchScript and .pt2 through the
PyTorch, Keras and SavedModel through the TensorFlow of an interpreter that --python names. What the file says is read:
size, layout and type of its input, its quantisation, labels where it has them. What it does not say is asked: mostly
the labels and how pixels become values. --input, --output and --detection take the keys of these tables of
package.toml (docs/model-package.md), as KEY=VALUE without quotes.

--pictures is a folder a label (pictures/LABEL/*.jpg), CSV, COCO, VOC or YOLO, or one folder without labels. The package
must answer as the file does, to the pictures and to noise; what it is sure about becomes its proof samples. With labels
the model is judged, and where --normalise is missing they show what each usual way gives.

The outcome says whether devices can learn with the model, and if not, which node of it forbids that. Exporters fold
BatchNormalization away; --checkpoint names the same network exported without that, which the package then carries as
well, for devices to learn on. Both must give the same.

A file from a stranger: ONNX and TFLite are read in a process of its own and nothing in them is executed but the model.
TorchScript and SavedModel are programs that PyTorch and TensorFlow carry out with your rights; nothing is unpickled.

Exit status: 0 done, 1 refused or something is wrong, 2 wrong usage, 3 the daemon is needed but not reachable."""


def add(verbs: common.Verbs) -> None:
    """Register the verb."""
    parser = common.verb(verbs, "import", "Make a package of a model that was trained elsewhere.", _do, _DETAILS)
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help=".onnx, .tflite, .pt2, TorchScript, .keras, .h5 or a SavedModel directory",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="of the new package")
    parser.add_argument("--version", type=making.version, default="1", metavar="VERSION", help="of the new package (1)")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder that gets the new package (this folder)"
    )
    parser.add_argument(
        "--task",
        choices=("embedding", "anomaly"),
        default="",
        help="its output is a vector that tells identities apart, or a map of how far a part is from what is good",
    )
    parser.add_argument("--labels", type=Path, metavar="FILE", help="one label a line, in the order of the outputs")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--pictures", type=Path, metavar="DIR|CSV|JSON", help="pictures that prove the package")
    which.add_argument("--unproved", action="store_true", help="make a package that no picture proves")
    parser.add_argument("--group", default="", metavar="COLUMN", help="column of the CSV that groups pictures")
    described = parser.add_argument_group("what the file does not say")
    described.add_argument("--normalise", choices=NORMALISE, default="", help="how pixels become values")
    for name, about in (
        ("input", "keys of [input], such as colour=bgr resize=crop interpolation=linear mean=127 scale=0.0078125"),
        ("output", "keys of [output]: name=NAME kind=logits"),
        ("detection", "it is a detector: keys of [detection], such as head=yolov8 report=0.4"),
    ):
        described.add_argument(f"--{name}", nargs="+", metavar="KEY=VALUE", help=about)
    parser.add_argument(
        "--good",
        default="",
        metavar="LABEL",
        help="--task anomaly: the label of good parts, where pictures have labels",
    )
    parser.add_argument(
        "--false-alarms",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="--task anomaly: share of good parts that may be called anomalous (0.05)",
    )
    parser.add_argument(
        "--python", default="", metavar="PATH", help="interpreter with PyTorch or TensorFlow, for files of theirs"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="the same network with BatchNormalization not folded, for devices to learn on: .onnx, .pt2 or TorchScript",
    )
    parser.add_argument("--register", action="store_true", help="register the new package with the daemon")


def _do(args: argparse.Namespace) -> int:
    from cloudd import importing  # the other verbs must not wait for numpy and the runtime
    from edgekit.datasets.dataset import DatasetError
    from edgekit.packages import DetectionSpec, InputSpec, OutputSpec
    from edgekit.runtimes import ModelError

    line = making.Line()
    try:
        tables: dict[str, Any] = {
            name: importing.read_wishes(getattr(args, name) or (), table, f"--{name}")
            for name, table in (("input", InputSpec), ("output", OutputSpec), ("detection", DetectionSpec))
        }
        request = importing.Request(
            source=args.file,
            name=args.model,
            version=args.version,
            out=args.out,
            labels=_labels(args.labels),
            pictures=args.pictures,
            group=args.group,
            normalise=args.normalise,
            input=tables["input"],
            output=tables["output"],
            detection=tables["detection"] if args.detection is not None else None,
            task=args.task,
            good=args.good,
            false_alarms=args.false_alarms,
            python=args.python,
            checkpoint=args.checkpoint,
        )
        if args.register:
            _check_new(args)
        os.nice(making.NICE)
        outcome = importing.import_model(request, line.show)
    except (importing.ImportRefused, DatasetError, PackageError, ModelError) as error:
        line.clear()
        print("cloudd: " + "\n".join(printable(text) for text in str(error).split("\n")), file=sys.stderr)
        return 1
    finally:
        line.clear()
    return making.made(args, outcome, outcome.package, _show)


def _labels(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    if path.stat().st_size > _MAX_LABELS:
        raise PackageError(f"{path} has more than {_MAX_LABELS} bytes; it should have one label a line")
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise PackageError(f"{path} is not UTF-8 text") from None
    return tuple(line.strip() for line in lines)


def _check_new(args: argparse.Namespace) -> None:
    """Raise PackageError, before the work, if the daemon has a package of this name and version."""
    ref = f"{args.model}@{args.version}"
    try:
        common.client(args).get(common.path("models", ref))
    except ClientError as error:
        if error.status != 404:
            raise
        return
    raise PackageError(f"{ref} is registered already; give the new package another --version")


def _show(outcome: Outcome, registered: bool) -> None:
    lineage = outcome.lineage
    spec, origin = outcome.input, lineage.input
    print(
        f"{outcome.model}: {printable(lineage.source.file)} ({lineage.source.kind}), {outcome.bytes / 1e6:.2f} MB, "
        f"{outcome.labels or 'no'} {'label' if outcome.labels == 1 else 'labels'}; {printable(lineage.road)}."
    )
    for change in lineage.changes:
        print(f"  {printable(change)}")
    parts = {
        "size": (f"{spec.width}x{spec.height}", "width"),
        "layout": (spec.layout, "layout"),
        "colour": (spec.colour, "colour"),
        "values": (f"(pixel - {_numbers(spec.mean)}) * {_numbers(spec.scale)}", "scale"),
        "resize": (spec.resize, "resize"),
        "interpolation": (spec.interpolation, "interpolation"),
    }
    print(
        "Input: " + ", ".join(f"{name} {text} ({origin.get(key, 'said')})" for name, (text, key) in parts.items()) + "."
    )
    same = lineage.sameness
    if same.how == "bytes":
        print("Same answers: the package holds the file itself, byte for byte.")
    else:
        print(
            f"Same answers: on {same.pictures} pictures and {same.noise} tensors of noise no output differs by more "
            f"than {same.largest:.1g} of its largest value."
        )
    if (checkpoint := lineage.checkpoint) is not None:
        print(
            f"Checkpoint: {printable(checkpoint.source.file)} ({checkpoint.source.kind}), "
            f"{checkpoint.normalisations} BatchNormalization; no output differs from the model's by more than "
            f"{checkpoint.largest:.1g} of its largest value."
        )
    _show_pictures(outcome)
    _show_learning(outcome)
    if registered:
        print(f"{outcome.model} is in {outcome.package} and registered.")
    else:
        print(f"{outcome.model} is in {outcome.package}; hand it out with: cloudd models add {outcome.package}")


def _show_pictures(outcome: Outcome) -> None:
    lineage = outcome.lineage
    if (figures := lineage.figures) is not None:
        boxes = figures.rival_right is None
        share = figures.right
        print(
            f"{'Reported boxes that are true' if boxes else 'Right answers'}: {share.hits} of {share.trials} "
            f"({share.low:.1%} to {share.high:.1%})."
        )
    if (told := lineage.likeness) is not None:
        print(
            f"Nearer to their own identity than to any other: {told.nearest.hits} of {told.nearest.trials} pictures "
            f"({told.nearest.low:.1%} to {told.nearest.high:.1%}), of {told.identities} identities. The threshold "
            f"{told.threshold:g} misses {told.missed.hits} of {told.missed.trials} and takes {told.taken.hits} of "
            f"{told.taken.trials} for another."
        )
    if (parts := lineage.parts) is not None:
        print(f"Limit {parts.limit:.4g}: {parts.false_alarms.hits} of {parts.good} good parts are called anomalous.")
        for label, found in parts.found.items():
            print(f"  {printable(label)}: {found.hits} of {found.trials} found ({found.low:.1%} to {found.high:.1%})")
    if lineage.pinned == "labels":
        print(f"{outcome.samples} proof samples say what the labels say.")
    elif lineage.pinned == "answers":
        print(
            f"{outcome.samples} proof samples say what the model answers now: they show that a device computes the "
            "same, not that it is right."
        )
    else:
        why = "it is sure about none of the pictures; " if lineage.pictures else ""
        print(f"No proof samples: {why}on a device nothing but a blank picture shows that the model runs.")


def _show_learning(outcome: Outcome) -> None:
    learning = outcome.lineage.learning
    if not learning.possible:
        print(f"Devices cannot learn with it: {printable(learning.reason)}.")
        return
    print(
        f"Devices can learn with it: {', '.join(learning.possible)} "
        f"({learning.weights} weights, {learning.normalisations} BatchNormalization)."
    )
    for rung, why in learning.rungs.items():
        if why:
            print(f"  not {rung}: {printable(why)}.")


def _numbers(values: list[float]) -> str:
    texts = [f"{value:.6g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "[" + ", ".join(texts) + "]"
