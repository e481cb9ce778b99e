"""A tiny split model: a whole package, its tail package, and what a device does with the heads of both cuts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.messages import FeaturesHeader
from edgekit.packages import InputSpec, Manifest, Package, TailCut, TailSpec, Variant, seal_package
from edgekit.runtimes import open_session
from edgekit.splitting import features
from edgekit.splitting.cuts import find_cuts
from edgekit.splitting.graph import read_graph
from edgekit.splitting.halves import make_halves
from edgekit.vision.classification import Classifier
from edgekit.vision.images import encode_png

SIDE = 32
LABELS = ["normal", "bridge", "missing"]


def scene(seed: int) -> bytes:
    """A picture of coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return encode_png(np.kron(patches, np.ones((12, 12, 1), np.uint8)))


@dataclass
class Split:
    """`heads`: ONNX files by the name of their cut, the earliest cut first."""

    whole: Package
    tail: Package
    heads: dict[str, Path]

    @property
    def cuts(self) -> list[str]:
        return list(self.heads)

    def header(self, cut: str) -> FeaturesHeader:
        return FeaturesHeader(tail=self.tail.ref, cut=cut)

    def features(self, cut: str, picture: bytes) -> bytes:
        """As a device sends them."""
        session = open_session(self.heads[cut], "onnxruntime")
        given = Classifier.load(self.whole).tensor(picture)
        outputs = session.run({session.inputs[0].name: given})
        return features.encode({tensor.name: one for tensor, one in zip(session.outputs, outputs, strict=True)})


def make_split(root: Path, name: str = "net", version: str = "1") -> Split:
    """Packages `name` and `name`-tail below `root`, with two proved cuts."""
    whole_root, tail_root, heads_root = root / name, root / f"{name}-tail", root / "heads"
    for directory in (whole_root, tail_root, heads_root):
        directory.mkdir(parents=True)
        (directory / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    spec = InputSpec(width=SIDE, height=SIDE, scale=[1 / 255], name="x")
    (whole_root / "model.onnx").write_bytes(_network().SerializeToString())
    whole = seal_package(
        whole_root,
        Manifest(name=name, version=version, labels="labels.txt", input=spec, variants=[Variant(file="model.onnx")]),
    )
    graph = read_graph(whole_root / "model.onnx")
    found = [cut for cut in find_cuts(graph).cuts if cut.tensors[0].name in ("a2", "b2")]
    feed = {"x": np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)}
    heads = {f"c{cut.index}": heads_root / f"c{cut.index}.onnx" for cut in found}
    for cut, (cut_name, head) in zip(found, heads.items(), strict=True):
        make_halves(whole_root / "model.onnx", graph, cut, head, tail_root / f"{cut_name}.onnx", [feed])
    tail = TailSpec(of=whole.ref, digest=whole.digest, cuts=[TailCut(name=cut, file=f"{cut}.onnx") for cut in heads])
    manifest = Manifest(name=f"{name}-tail", version=version, task="tail", labels="labels.txt", input=spec, tail=tail)
    return Split(whole, seal_package(tail_root, manifest), heads)


def _network() -> onnx.ModelProto:
    generator = np.random.default_rng(7)

    def weight(name: str, *shape: int, scale: float) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.normal(0, scale, shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a1"], ["a2"]),
        helper.make_node("Conv", ["a2", "w2"], ["b1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b1"], ["b2"]),
        helper.make_node("GlobalAveragePool", ["b2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w3"], ["y"]),
    ]
    weights = [weight("w1", 8, 3, 3, 3, scale=0.5), weight("w2", 8, 8, 3, 3, scale=0.3), weight("w3", 8, 3, scale=4.0)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, len(LABELS)])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
