"""A registered classifier becomes the files that the devices of a job train with: a process of its own (see child).

Needs the package onnx.

The gradients of a step are shortened to a norm together; with FedProx the graph holds the proximal term too (fed with
`NAME.anchor`). SCAFFOLD's correction is the device's: it is added to the weights after each step.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import msgspec
import onnx

from cloudd.derived import float_variant
from cloudd.federation.child import MAX_ORDER, Prepared, PrepareOrder, give_way
from cloudd.federation.definition import Definition, read
from cloudd.federation.errors import FederationError
from cloudd.federation.heading import prepare_head
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import Optimiser
from edgekit.autodiff.losses import CrossEntropy
from edgekit.autodiff.losses.proximal import Proximal
from edgekit.autodiff.optimisers import AdamW, Clipped, Sgd
from edgekit.autodiff.step import build_step
from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import OneRoundHead
from edgekit.federated.layout import Layout
from edgekit.federated.plan import Plan
from edgekit.messages.federation import LocalTraining
from edgekit.packages import Package, PackageError, open_package
from edgekit.runtimes import ModelError
from edgekit.runtimes.onnx_reader import read_references
from edgekit.training import TrainingError, write_plan


def prepare(package: Package, definition: Definition, plan: Plan, folder: Path) -> int:
    """Write the plan of the train step, or the files of a head, into `folder`, which is made.

    Returns the number of shared values, or of features.

    Raises FederationError for a model that cannot be trained so, ModelError, OSError.
    """
    local = definition.local
    if isinstance(plan.strategy, OneRoundHead):
        try:
            return prepare_head(package, forward(package), (*package.labels, *definition.new_labels), folder)
        except TrainingError as error:
            raise FederationError(f"{package.ref} cannot get a head by devices: {error}") from None
    try:
        step = build_step(
            forward(package),
            CrossEntropy(smoothing=local.smoothing),
            local_optimiser(local, plan),
            re.compile(local.trainable).pattern,
            batch_norm=local.batch_norm,
            sizes=_sizes(package),
        )
        write_plan(step, folder)
        layout = Layout({one.name: one.shape for one in step.manifest.of("parameter", "batch_norm")}, plan.personal)
    except (AutodiffError, TrainingError, FederatedError) as error:
        raise FederationError(f"{package.ref} cannot be trained by devices: {error}") from None
    return layout.size


def local_optimiser(local: LocalTraining, plan: Plan) -> Optimiser:
    """Of a device in a job. Raises AutodiffError for numbers that no optimiser takes."""
    inner: Optimiser
    if local.optimiser == "adamw":
        inner = AdamW(weight_decay=local.weight_decay)
    else:
        inner = Sgd(momentum=local.momentum, weight_decay=local.weight_decay)
    clipped = Clipped(inner, local.max_norm)
    proximal = getattr(plan.strategy, "proximal", 0.0)
    return Proximal(clipped, proximal) if proximal else clipped


def forward(package: Package) -> onnx.ModelProto:
    """The float32 classifier with its logits as the only output. Raises FederationError, ModelError."""
    manifest = package.manifest
    variant = float_variant(manifest.variants)
    if manifest.task != "classification" or manifest.output.kind == "none" or variant is None:
        raise FederationError(
            f"{package.ref} is no classifier with a float32 ONNX file; only such models are trained by devices together"
        )
    path = package.path(variant.file)
    for external in read_references(path).external:
        package.path(str(Path(variant.file).parent / external))  # a listed file, or PackageError
    model = onnx.load(str(path))
    output = manifest.output.name or model.graph.output[0].name
    if manifest.output.kind == "probabilities":
        output = _before_softmax(model, output, package.ref)
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["N", len(package.labels)])
    )
    del model.metadata_props[:]
    _drop_unused(model.graph, output)
    return model


def _before_softmax(model: onnx.ModelProto, output: str, ref: str) -> str:
    maker = next((node for node in model.graph.node if output in node.output), None)
    if maker is None or maker.op_type != "Softmax":
        raise FederationError(f"the probabilities of {ref} are not made by a Softmax, so its logits cannot be found")
    return str(maker.input[0])


def _drop_unused(graph: onnx.GraphProto, output: str) -> None:
    needed, kept = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _sizes(package: Package) -> dict[str, list[int]] | None:
    """The size of the picture, where the model leaves it open."""
    spec = package.manifest.input
    channels = 1 if spec.colour == "grey" else 3
    if spec.layout != "nchw" or not spec.name:
        return None
    return {spec.name: [channels, spec.height, spec.width]}


def main() -> int:
    """Entry point: 0 and the number of shared values, or 1 and a sentence."""
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(MAX_ORDER), type=PrepareOrder)
        give_way()
        values = prepare(open_package(Path(order.base)), *read(order.definition), Path(order.folder))
        reply, status = Prepared(values=values), 0
    except (FederationError, PackageError, ModelError) as error:
        reply, status = Prepared(error=str(error)), 1
    except OSError as error:
        reply, status = Prepared(error=f"{error.filename or 'the disk'}: {error.strerror}"), 1
    sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
