"""What compression gains, and what it costs: speed, size and accuracy of every kind of variant.

    python -m benchmarks.compress [--quick] [--json FILE]

Two networks of usual size with random weights say how much faster and smaller (their accuracy means nothing); the two
trained models of the demo say what it costs, through the whole product step with its gate, on joints of the line
simulator that they have never seen. Times are CPU time of one thread, taken in turn, so that neighbours on the machine
lengthen neither. The kinds `pruned` have fewer channels in every layer; the networks with random weights show both
widths that the step tries, without teaching them.

The goals are those of research/algorithms.md 7 for a CPU with VNNI: 3 times as fast for a ResNet-18, 2 times for a
MobileNetV2, 0.27 of the size, 0.5 points of accuracy, for 8 bits alone and for fewer channels in 8 bits.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks import report, serving_models
from benchmarks.adapt_models import Net, mobilenet_v2
from cloudd.compress import KINDS, QUICK, Request, compress, pruned, quantise, read_dataset
from cloudd.compress.maker import Materials
from edgekit.packages import open_package
from edgekit.runtimes import Session, open_session
from edgekit.vision import images
from examples.line_simulator.line import boards

GOALS = {"resnet18": 3.0, "mobilenetv2": 2.0}
GOAL_SIZE = 0.27
GOAL_DROP = 0.005
COLUMNS = ["case", "kind", "ms", "speedup", "size_ratio", "accuracy", "accuracy_drop", "drop_bound", "accepted"]
SIDE = 224
_MODELS = Path(__file__).resolve().parents[1] / "examples" / "models"


def resnet18(path: Path) -> None:
    """The layers of ResNet-18 (He et al. 2015, table 1) with batch normalisation folded in."""
    net = Net(5, labels=1000)
    x, channels = net.conv("input", 3, 64, kernel=7, stride=2), 64
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for out in (64, 128, 256, 512):
        for index in range(2):
            stride = 2 if index == 0 and out != 64 else 1
            y = net.conv(net.conv(x, channels, out, stride=stride), out, out, active=False)
            same = stride == 1 and channels == out
            skip = x if same else net.conv(x, channels, out, kernel=1, stride=stride, active=False)
            x, channels = net.node("Relu", net.node("Add", y, skip)), out
    net.classifier(x, channels)
    net.save(path, SIDE)


def mobilenetv2(path: Path) -> None:
    """With the ReLU6 of the original, which costs the float model a pass of its own."""
    mobilenet_v2(path, SIDE, labels=1000)
    model = onnx.load(str(path))
    for name, value in (("zero", 0.0), ("six", 6.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Clip"
            node.input.extend(("zero", "six"))
    onnx.save(model, str(path))


NETWORKS = {"resnet18": resnet18, "mobilenetv2": mobilenetv2}


def untrained(name: str, rounds: int, calibration: int) -> list[dict[str, Any]]:
    """One row a kind for a network with random weights: made by the product's makers, nothing taught, no gate."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        source, prepared = folder / "model.onnx", folder / "prepared.onnx"
        NETWORKS[name](source)
        quantise.prepare(source, source.stat().st_size, prepared)
        materials = Materials(prepared, "input", lambda: pictures(calibration))
        files = {"": source}
        for kind in QUICK:
            files[kind] = folder / f"{kind}.onnx"
            KINDS[kind].make(materials, files[kind], careful=False)
        for keep in (pruned.KEEP, pruned.KEEP_CAREFUL):
            made = pruned.cut(source, "logits", materials, keep, folder)
            student = files[f"pruned {keep}"] = folder / f"pruned-{keep}.onnx"
            pruned.finish(made.small, made.ending, source, student)
            files[f"pruned-u8s8 {keep}"] = folder / f"pruned-u8s8-{keep}.onnx"
            own = dataclasses.replace(materials, model=student)
            quantise.u8s8(own, files[f"pruned-u8s8 {keep}"], careful=False)
        times = in_turn({kind: open_session(file, "onnxruntime") for kind, file in files.items()}, rounds)
        return [
            {
                "case": name,
                "kind": kind or "float",
                "ms": statistics.median(times[kind]) * 1e3,
                "speedup": statistics.median(a / b for a, b in zip(times[""], times[kind], strict=True)),
                "size_ratio": file.stat().st_size / source.stat().st_size,
                "accuracy_drop": None,
            }
            for kind, file in files.items()
        ]


def pictures(count: int) -> Iterator[NDArray[np.float32]]:
    """Smooth noise as the input of those networks: float32 in 0..1."""
    for seed in range(count):
        pixels = images.decode(serving_models.picture(SIDE, seed))
        yield np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis], np.float32) * np.float32(serving_models.SCALE)


def in_turn(sessions: Mapping[str, Session], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of one run, once a round for each: the best of three runs after one that warms its caches."""
    feed = {"input": next(pictures(1))}
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 1):
        for name, session in sessions.items():
            times = []
            for _ in range(4):
                started = time.thread_time()
                session.run(feed)
                times.append(time.thread_time() - started)
            if turn:  # the first round warms up
                found[name].append(min(times[1:]))
    return found


def trained(name: str, joints: Path, held_out: int, seconds: float) -> list[dict[str, Any]]:
    """One row a kind for a model of the demo: the whole step."""
    package = open_package(_MODELS / name)
    with tempfile.TemporaryDirectory() as directory:
        dataset = read_dataset(joints, package.labels)
        request = Request(package, dataset, Path(directory), "benchmark", held_out=held_out, seconds=seconds)
        outcome = compress(request)
    base = outcome.speeds[""].p50_ms
    rows: list[dict[str, Any]] = [{"case": name, "kind": "float", "ms": base, "speedup": 1.0, "size_ratio": 1.0}]
    for made in outcome.lineage.variants:
        row = {"case": name, "kind": made.kind, "accepted": made.accepted, "reason": made.reason}
        if made.gate is not None:
            rows[0]["accuracy"] = made.gate.old_accuracy
            row |= {
                "ms": outcome.speeds[made.kind].p50_ms,
                "speedup": base / outcome.speeds[made.kind].p50_ms,
                "size_ratio": made.bytes / outcome.source_bytes,
                "accuracy": made.gate.new_accuracy,
                "accuracy_drop": made.gate.drop,
                "drop_bound": made.gate.drop_bound,
                "pictures": made.gate.items,
                "method": made.recipe.method if made.recipe else "",
            }
        rows.append(row)
    return rows


def draw(root: Path, count: int) -> Path:
    """Joints of both plants on boards that no model was trained on, a folder a label."""
    for plant in ("north", "south"):
        for board in islice(boards(plant, 77, defect_rate=0.5), count // 2):
            for joint in board.joints:
                (root / joint.label).mkdir(exist_ok=True)
                (root / joint.label / f"{board.serial}-{joint.position}.jpg").write_bytes(joint.jpeg())
    return root


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The goals, each met or not, for what suits this kind of processor: 8 bits, and 8 bits of fewer channels.

    Of the two widths without teaching, the wider one counts: the one that a model with little to spare is left with.
    """
    return {
        **_met("", [row for row in rows if row["kind"] == "u8s8"]),
        **_met(
            "pruned_",
            [row for row in rows if row["kind"] in ("pruned-u8s8", f"pruned-u8s8 {pruned.KEEP_CAREFUL}")],
        ),
    }


def _met(prefix: str, own: list[dict[str, Any]]) -> dict[str, Any]:
    large = [row for row in own if row["case"] in GOALS]
    judged = [row for row in own if row["case"] not in GOALS]
    return {
        f"{prefix}speedup_met": all(row["speedup"] >= GOALS[row["case"]] for row in large),
        f"{prefix}size_ratio_met": all(row["size_ratio"] <= GOAL_SIZE for row in large),
        f"{prefix}accuracy_drop_met": all(row["accepted"] and row["accuracy_drop"] <= GOAL_DROP for row in judged),
    }


def main(argv: list[str] | None = None) -> None:
    options = report.arguments((__doc__ or "").splitlines()[0]).parse_args(argv)
    rounds, calibration, count, held_out, seconds = (
        (5, 4, 80, 600, 20.0) if options.quick else (25, 16, 400, 5000, 300.0)
    )
    rows: list[dict[str, Any]] = []
    for name in NETWORKS:
        rows += untrained(name, rounds, calibration)
    with tempfile.TemporaryDirectory() as directory:
        joints = draw(Path(directory), count)
        for name in ("solder-small", "solder-large"):
            rows += trained(name, joints, held_out, seconds)
    print(report.table(rows, COLUMNS))
    goals = verdict(rows)
    print()
    print(report.transposed([{"goal": "found", **goals}], "goal"))
    report.write_json(options.json, "compress", {"cases": rows, **goals}, quick=options.quick)


if __name__ == "__main__":
    main()
