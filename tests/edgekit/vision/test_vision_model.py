"""How a package's variant becomes a model in memory, whatever its task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, Variant, seal_package
from edgekit.runtimes import ModelError, Session
from edgekit.vision.images import decode
from edgekit.vision.model import blank, first_variant, loaded, look_at_sample


def package(root: Path, *variants: Variant, labels: int = 2) -> Package:
    """Of a model that gives two values."""
    root.mkdir()
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 1, 1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "g", [image], [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for one in variants:
        (root / one.file).write_bytes(model.SerializeToString())
    (root / "labels.txt").write_text("".join(f"{number}\n" for number in range(labels)))
    manifest = Manifest(
        name="m",
        version="1",
        labels="labels.txt",
        input=InputSpec(width=1, height=1, colour="grey"),
        output=OutputSpec(),
        variants=list(variants),
    )
    return seal_package(root, manifest)


def test_what_cannot_be_made_of_a_session_leaves_none_open(tmp_path: Path) -> None:
    opened: list[Session] = []

    def make(package: Package, variant: Variant, session: Session) -> None:
        opened.append(session)
        session.run({"x": np.zeros((1, 2, 1, 1), np.float32)})
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loaded(make, package(tmp_path / "p", Variant(file="m.onnx")), None, None)
    with pytest.raises(ModelError, match="closed"):
        opened[0].run({"x": np.zeros((1, 2, 1, 1), np.float32)})


def test_the_first_variant_is_the_first_that_runs_on_any_chip(tmp_path: Path) -> None:
    chip = Variant(file="chip.onnx", runtime="rknnlite", target="rk3588")
    plain = Variant(file="plain.onnx")
    assert first_variant(package(tmp_path / "a", chip, plain)) == plain
    assert first_variant(package(tmp_path / "b", chip)) == chip, "who runs it says why it cannot be opened"


def test_a_sample_that_holds_no_picture_is_named(tmp_path: Path) -> None:
    found = package(tmp_path / "p", Variant(file="m.onnx"))
    with pytest.raises(ModelError, match=r"the sample labels.txt cannot be used"):
        look_at_sample(found, "labels.txt", lambda data: decode(data, "grey"))


@pytest.mark.parametrize(("colour", "shape"), [("grey", (3, 5)), ("rgb", (3, 5, 3))])
def test_a_blank_picture_has_the_size_of_the_input(colour: str, shape: tuple[int, ...]) -> None:
    found = blank(InputSpec(width=5, height=3, colour=colour))  # type: ignore[arg-type]
    assert found.shape == shape and not found.any()
