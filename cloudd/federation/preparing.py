"""A registered classifier or centre-point detector becomes what the devices of a job train with: a process of its own.

Needs the package onnx.

The gradients of a step are shortened to a norm together; with FedProx the graph holds the proximal term too (fed with
`NAME.anchor`). SCAFFOLD's correction is the device's: it is added to the weights after each step.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import onnx

from cloudd.derived import float_variant
from cloudd.federation.child import Prepared, PrepareOrder, carry_out
from cloudd.federation.definition import Definition, read
from cloudd.federation.errors import FederationError
from cloudd.federation.heading import prepare_head
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import Loss, Optimiser
from edgekit.autodiff.losses import CentrePointLoss, CrossEntropy
from edgekit.autodiff.losses.proximal import Proximal
from edgekit.autodiff.optimisers import AdamW, Clipped, Sgd
from edgekit.autodiff.step import build_step
from edgekit.federated.errors import FederatedError
from edgekit.federated.head_jobs import OneRoundHead
from edgekit.federated.layout import Layout
from edgekit.federated.plan import Plan
from edgekit.graphs.editing import keep_outputs
from edgekit.graphs.errors import NetworkError
from edgekit.graphs.logits import keep_logits
from edgekit.messages.federation import LocalTraining
from edgekit.packages import DetectionSpec, Package, PackageError, open_package
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
        if package.manifest.task == "detection":
            raise FederationError(f"{package.ref} is a detector, and has no last layer that could be made in one round")
        try:
            return prepare_head(package, forward(package), (*package.labels, *definition.new_labels), folder)
        except (NetworkError, TrainingError) as error:
            raise FederationError(f"{package.ref} cannot get a head by devices: {error}") from None
    try:
        step = build_step(
            forward(package),
            learned_loss(package, local),
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


def learned_loss(package: Package, local: LocalTraining) -> Loss:
    """By which its devices learn. Raises FederationError as `forward`."""
    if package.manifest.task != "detection":
        return CrossEntropy(smoothing=local.smoothing)
    heat, size, offset = _centres(package).outputs
    return CentrePointLoss(heat=heat, size=size, offset=offset)


def _centres(package: Package) -> DetectionSpec:
    """The head of a detector. Raises FederationError for another one than of centre points."""
    spec = package.manifest.detection
    if spec is None or spec.head != "centernet" or spec.scores == "probabilities" or len(spec.outputs) != 3:
        raise FederationError(
            f'{package.ref} has another head than centre points ("centernet", with logits), and only those are trained '
            "by devices together"
        )
    return spec


def forward(package: Package) -> onnx.ModelProto:
    """The float32 classifier with its logits as the only output, or the detector with its three maps.

    Raises FederationError, ModelError.
    """
    manifest = package.manifest
    variant = float_variant(manifest.variants)
    detects = manifest.task == "detection"
    if not (detects or (manifest.task == "classification" and manifest.output.kind != "none")) or variant is None:
        raise FederationError(
            f"{package.ref} is no classifier or detector with a float32 ONNX file; only such models are trained by "
            "devices together"
        )
    path = package.path(variant.file)
    for external in read_references(path).external:
        package.path(str(Path(variant.file).parent / external))  # a listed file, or PackageError
    model = onnx.load(str(path))
    del model.metadata_props[:]
    output = manifest.output.name or model.graph.output[0].name
    try:
        if detects:
            keep_outputs(model, _centres(package).outputs)
            return model
        logits = keep_logits(model, output, probabilities=manifest.output.kind == "probabilities")
    except NetworkError as error:
        raise FederationError(f"{package.ref} cannot be trained by devices: {error}") from None
    info = onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, ["N", len(package.labels)])
    model.graph.output[0].CopyFrom(info)
    return model


def _sizes(package: Package) -> dict[str, list[int]] | None:
    """The size of the picture, where the model leaves it open."""
    spec = package.manifest.input
    channels = 1 if spec.colour == "grey" else 3
    if spec.layout != "nchw" or not spec.name:
        return None
    return {spec.name: [channels, spec.height, spec.width]}


def main() -> int:
    """Entry point: 0 and the number of shared values, or 1 and a sentence."""

    def work(order: PrepareOrder) -> Prepared:
        base = open_package(Path(order.base))
        return Prepared(values=prepare(base, *read(order.definition), Path(order.folder)))

    refusals = FederationError, PackageError, ModelError
    return carry_out(PrepareOrder, work, lambda error: Prepared(error=error), refusals)


if __name__ == "__main__":
    sys.exit(main())
