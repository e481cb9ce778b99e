"""The whole step on a trained model: what is kept, what is refused and why, and what the new package says about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloudd.compress import (
    QUICK,
    CompressError,
    Outcome,
    Request,
    compress,
    next_version,
    read_dataset,
    read_lineage,
)
from cloudd.compress.lineage import LINEAGE, Made
from cloudd.compress.maker import Maker, Materials, Recipe
from cloudd.compress.variants import KINDS, Kind
from edgekit.datasets.dataset import Dataset, DatasetError
from edgekit.packages import Package, PackageError, Variant, open_package, seal_package
from edgekit.vision.classification import Classifier
from tests.support.models import make_package, picture

Damage = Callable[[onnx.ModelProto], None]


def tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def damaged(damage: Damage, make: Maker = KINDS["u8s8"].make) -> Maker:
    """A maker whose file is damaged afterwards."""

    def maker(materials: Materials, target: Path, *, careful: bool) -> Recipe:
        recipe = make(materials, target, careful=careful)
        model = onnx.load(str(target))
        damage(model)
        onnx.save(model, str(target))
        return recipe

    return maker


def other_weights(model: onnx.ModelProto) -> None:
    """The weights of the last convolution, in another order."""
    tensor = [one for one in model.graph.initializer if len(one.dims) == 4][-1]
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(
        numpy_helper.from_array(np.random.default_rng(1).permutation(values.ravel()).reshape(values.shape), tensor.name)
    )


def wrong_scale(model: onnx.ModelProto) -> None:
    """One layer's activations are read back five times as large as they were stored."""
    known = tensors(model)
    node = [one for one in model.graph.node if one.op_type == "DequantizeLinear" and one.input[0] not in known][2]
    scale = known[node.input[1]]
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(5), "wrong"))
    node.input[1] = "wrong"


def not_a_number(model: onnx.ModelProto) -> None:
    """One weight of the last layer."""
    tensor = [one for one in model.graph.initializer if len(one.dims) == 2][-1]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def too_many_outputs(model: onnx.ModelProto) -> None:
    extra = numpy_helper.from_array(np.zeros((1, 2), np.float32), "extra")
    model.graph.initializer.append(extra)
    output = model.graph.output[0]
    output.CopyFrom(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 7]))
    model.graph.node.append(helper.make_node("Concat", ["logits", "extra"], ["more"], axis=1))


def foreign_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.vendor", 1))
    model.graph.node[0].domain = "com.vendor"


def fogged(materials: Materials, target: Path, *, careful: bool) -> Recipe:
    """Calibrated on grey pictures with a little noise, which say nothing about the range of real ones."""

    def fog() -> Iterator[NDArray[np.float32]]:
        rng = np.random.default_rng(1)
        for one in materials.pictures():
            yield rng.normal(0, 0.01, one.shape).astype(np.float32)

    return KINDS["u8s8"].make(Materials(materials.model, materials.input, fog), target, careful=careful)


def try_maker(
    maker: Maker,
    package: Package,
    dataset: Dataset,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    careful: bool = False,
) -> Made:
    """What the step says about one variant of this maker."""
    monkeypatch.setitem(KINDS, "tried", Kind("tried", "", "int8", maker, careful, leads=True))
    outcome = compress(Request(package, dataset, out, "2", kinds=("tried",)))
    assert bool(outcome.package) == outcome.lineage.variants[0].accepted
    return outcome.lineage.variants[0]


@pytest.fixture(scope="module")
def bare(solder: Package, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The same model without proof samples, so that nothing but the gate stands in a variant's way."""
    root = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(solder.root, root)
    return seal_package(root, msgspec.structs.replace(solder.manifest, samples=[]))


@pytest.fixture(scope="module")
def done(solder: Package, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("out")
    return compress(Request(solder, dataset, out, "1-c1", kinds=QUICK)), out


def test_good_variants_are_kept_in_a_new_package_around_the_float_model(done: tuple[Outcome, Path]) -> None:
    outcome, out = done
    package = open_package(Path(outcome.package))
    assert package.root == out / "solder-large@1-c1" and outcome.model == package.ref
    files = [(one.file, one.precision) for one in package.manifest.variants]
    assert files == [
        ("compressed/u8s8.onnx", "int8"),
        ("compressed/s8s8.onnx", "int8"),
        ("model.onnx", "fp32"),
        ("compressed/fp16.onnx", "fp16"),
    ]
    for variant in package.manifest.variants:
        model = Classifier.load(package, variant=variant)
        assert model.prove() == 5
        model.close()
    assert list(out.iterdir()) == [package.root]


def test_eight_bits_take_under_a_third_of_the_size_and_lose_nothing_that_counts(done: tuple[Outcome, Path]) -> None:
    outcome, _ = done
    for made in outcome.accepted:
        assert made.gate is not None and made.gate.items >= 500
        assert made.gate.drop <= 0.005 and made.gate.drop_bound <= 0.01
    sizes = {made.kind: made.bytes / outcome.source_bytes for made in outcome.accepted}
    assert sizes["u8s8"] < 0.3 and sizes["s8s8"] < 0.3 and sizes["fp16"] < 0.55
    assert set(outcome.speeds) == {"", "u8s8", "s8s8", "fp16"}


def test_the_lineage_names_all_that_went_in_and_travels_with_the_package(
    done: tuple[Outcome, Path], solder: Package, dataset: Dataset
) -> None:
    outcome, _ = done
    package = open_package(Path(outcome.package))
    lineage = read_lineage(package)
    assert lineage == outcome.lineage and LINEAGE in package.manifest.files
    assert lineage is not None
    assert (lineage.source.model, lineage.source.digest) == ("solder-large@1", solder.digest)
    assert lineage.source.sha256 == solder.manifest.files["model.onnx"]
    assert lineage.data.digest == dataset.digest
    assert lineage.data.calibration + lineage.data.held_out == lineage.data.pictures == 720
    assert {"onnx", "onnxruntime", "cloudd", "machine"} <= lineage.tools.keys()
    for made in lineage.variants:
        assert package.manifest.files[made.file] == made.sha256
        assert made.recipe is not None and made.recipe.method
    assert read_lineage(solder) is None


def test_a_damaged_lineage_is_an_error_with_the_file_in_it(done: tuple[Outcome, Path], tmp_path: Path) -> None:
    root = tmp_path / "package"
    shutil.copytree(done[0].package, root)
    (root / LINEAGE).write_bytes(b'{"schema": 2}')
    package = seal_package(root, open_package(Path(done[0].package)).manifest)
    with pytest.raises(CompressError, match=r"compressed/lineage.json of solder-large@1-c1 cannot be read"):
        read_lineage(package)


def test_the_same_request_gives_the_same_package(
    done: tuple[Outcome, Path], solder: Package, dataset: Dataset, tmp_path: Path
) -> None:
    again = compress(Request(solder, dataset, tmp_path, "1-c1", kinds=QUICK))
    assert open_package(Path(again.package)).digest == open_package(Path(done[0].package)).digest


@pytest.mark.parametrize(
    ("maker", "reason"),
    [
        (damaged(other_weights), "the accuracy may fall by"),
        (damaged(wrong_scale), "the accuracy may fall by"),
        (fogged, "the accuracy may fall by"),
        (damaged(not_a_number, KINDS["fp16"].make), "values that are not numbers"),
        (damaged(too_many_outputs), "there are 5 labels"),
        (damaged(foreign_operator), "com.vendor"),
    ],
    ids=["damaged weights", "wrong scale", "calibrated on fog", "nan", "other outputs", "foreign operator"],
)
def test_a_sabotaged_variant_is_refused_with_the_reason(
    maker: Maker, reason: str, bare: Package, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = try_maker(maker, bare, dataset, tmp_path / "out", monkeypatch)
    assert not made.accepted and made.reason.startswith("refused: ")
    assert reason in made.reason
    assert not (tmp_path / "out").exists()


def test_a_variant_that_fails_a_proof_of_the_package_is_refused_for_that(
    solder: Package, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = try_maker(damaged(other_weights), solder, dataset, tmp_path / "out", monkeypatch)
    assert made.gate is None and made.reason.startswith("refused: the sample samples/")


def test_a_variant_that_is_nan_for_some_pictures_only_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def root_of_darkness(materials: Materials, target: Path, *, careful: bool) -> Recipe:
        """Adds the root of (0.9 - first pixel) to both logits, which no bright picture has."""
        model = onnx.load(str(materials.model))
        for name, value in (("limit", np.full(1, 0.9)), ("begin", np.zeros(2)), ("end", np.ones(2))):
            kind = np.float32 if name == "limit" else np.int64
            model.graph.initializer.append(numpy_helper.from_array(value.astype(kind), name))
        flat = next(node for node in model.graph.node if node.op_type == "Flatten").output[0]
        model.graph.node[-1].output[0] = "inner"
        model.graph.node.extend(
            (
                helper.make_node("Slice", [flat, "begin", "end"], ["pixel"]),
                helper.make_node("Sub", ["limit", "pixel"], ["rest"]),
                helper.make_node("Sqrt", ["rest"], ["root"]),
                helper.make_node("Add", ["inner", "root"], ["logits"]),
            )
        )
        onnx.save(model, str(target))
        return Recipe(method="")

    package = make_package(tmp_path / "model", samples=False)
    made = try_maker(root_of_darkness, package, brightness(tmp_path / "data"), tmp_path / "out", monkeypatch)
    assert made.gate is not None and not made.gate.criteria[0].passed
    assert 0.05 < made.gate.criteria[0].value / made.gate.items < 0.2
    assert made.reason.startswith("refused: it gives no usable answer for")
    assert "not numbers" in made.reason


def test_values_that_half_precision_cannot_hold_are_found_although_this_processor_could(tmp_path: Path) -> None:
    package = bright_package(tmp_path / "model")
    outcome = compress(Request(package, brightness(tmp_path / "data"), tmp_path / "out", "2", kinds=("fp16",)))
    (made,) = outcome.lineage.variants
    assert made.sha256 == "" and not outcome.package
    assert made.reason.startswith('refused: the value "') and "half precision ends at 65,504" in made.reason


def bright_package(root: Path) -> Package:
    """The model of tests.support.models, which multiplies its mean by 100,000 and divides it again on the way."""
    package = make_package(root, samples=False)
    model = onnx.load(str(root / "model.onnx"))
    at = next(number for number, node in enumerate(model.graph.node) if node.op_type == "ReduceMean")
    model.graph.node[at].output[0] = "small"
    model.graph.initializer.append(numpy_helper.from_array(np.full(1, 1e5, np.float32), "factor"))
    model.graph.node.insert(at + 1, helper.make_node("Mul", ["small", "factor"], ["large"]))
    model.graph.node.insert(at + 2, helper.make_node("Div", ["large", "factor"], ["mean"]))
    onnx.save(model, str(root / "model.onnx"))
    return seal_package(root, package.manifest)


def brightness(root: Path, count: int = 700) -> Dataset:
    for number in range(count):
        level = (number + 0.5) / count
        label = "dark" if level < 0.5 else "bright"
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{number}.png").write_bytes(picture(level, side=16, seed=number))
    return read_dataset(root, ["dark", "bright"])


def test_a_refused_kind_gets_its_careful_way_once(
    solder: Package, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def maker(materials: Materials, target: Path, *, careful: bool) -> Recipe:
        tried.append(careful)
        make = KINDS["u8s8"].make if careful else damaged(other_weights)
        return make(materials, target, careful=careful)

    made = try_maker(maker, solder, dataset, tmp_path, monkeypatch, careful=True)
    assert tried == [False, True]
    assert made.accepted and made.recipe is not None and len(made.recipe.kept_in_float) == 2
    package = open_package(tmp_path / "solder-large@2")
    assert package.manifest.files["compressed/tried.onnx"] == made.sha256


def test_a_kind_that_knows_no_more_careful_way_for_this_model_keeps_its_first_verdict(
    bare: Package, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def maker(materials: Materials, target: Path, *, careful: bool) -> Recipe:
        if careful:
            raise CompressError("nothing is left to take away")
        return damaged(other_weights)(materials, target, careful=careful)

    made = try_maker(maker, bare, dataset, tmp_path, monkeypatch, careful=True)
    assert made.gate is not None and "the accuracy may fall by" in made.reason


def test_a_kind_that_cannot_be_made_does_not_stop_the_others(
    solder: Package, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(materials: Materials, target: Path, *, careful: bool) -> Recipe:
        raise CompressError("this model has no width to take away")

    monkeypatch.setitem(KINDS, "narrow", Kind("narrow", "", "fp32", cannot, careful=True, leads=True))
    outcome = compress(Request(solder, dataset, tmp_path, "2", kinds=("narrow", "fp16")))
    narrow, half = outcome.lineage.variants
    assert narrow.reason == "refused: this model has no width to take away" and narrow.sha256 == ""
    assert half.accepted and open_package(Path(outcome.package)).manifest.variants[-1].precision == "fp16"


def test_a_variant_that_is_no_faster_here_is_refused_only_on_request(
    solder: Package, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(materials: Materials, target: Path, *, careful: bool) -> Recipe:
        shutil.copyfile(materials.model, target)
        return Recipe(method="the same again")

    monkeypatch.setitem(KINDS, "copy", Kind("copy", "", "fp32", copy, careful=False, leads=True))
    slow = compress(Request(solder, dataset, tmp_path, "2", kinds=("copy",), faster_here=True)).lineage.variants[0]
    assert not slow.accepted and "95th percentile" in slow.reason
    kept = compress(Request(solder, dataset, tmp_path, "2", kinds=("copy",))).lineage.variants[0]
    assert kept.accepted and kept.gate is not None and (kept.gate.lost, kept.gate.gained) == (0, 0)


def test_compressing_again_replaces_what_was_made_before(
    done: tuple[Outcome, Path], dataset: Dataset, tmp_path: Path
) -> None:
    first = open_package(Path(done[0].package))
    version = next_version(first.manifest.version)
    again = open_package(Path(compress(Request(first, dataset, tmp_path, version, kinds=("fp16",))).package))
    assert again.ref == "solder-large@1-c2"
    assert [one.file for one in again.manifest.variants] == ["model.onnx", "compressed/fp16.onnx"]
    assert "compressed/u8s8.onnx" not in again.manifest.files


def test_another_package_of_the_same_version_is_left_alone(
    done: tuple[Outcome, Path], solder: Package, dataset: Dataset
) -> None:
    outcome, out = done
    before = open_package(Path(outcome.package)).digest
    with pytest.raises(PackageError, match="give the changed model a new version"):
        compress(Request(solder, dataset, out, "1-c1", kinds=("fp16",)))
    assert open_package(Path(outcome.package)).digest == before and len(list(out.iterdir())) == 1


def test_too_few_pictures_are_refused_before_any_work(solder: Package, dataset: Dataset, tmp_path: Path) -> None:
    few = Dataset(dataset.pictures[:300], dataset.fetch)
    with pytest.raises(DatasetError, match=r"of the 300 pictures 2\d\d could judge .* which takes about 650"):
        compress(Request(solder, few, tmp_path, "2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "anomaly"}, 'is for the task "anomaly"'),
        ({"variants": [Variant(file="model.onnx", precision="int8")]}, "has no fp32 variant for onnxruntime"),
        ({"variants": [Variant(file="model.onnx", target="rk3588")]}, "has no fp32 variant for onnxruntime"),
    ],
)
def test_what_cannot_be_compressed_says_why(
    change: dict[str, object], message: str, solder: Package, dataset: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(solder.root, tmp_path / "model")
    package = seal_package(tmp_path / "model", msgspec.structs.replace(solder.manifest, **change))
    with pytest.raises(CompressError, match=message):
        compress(Request(package, dataset, tmp_path / "out", "2"))


def test_a_folder_of_the_authors_own_is_not_taken_over(solder: Package, dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(solder.root, tmp_path / "model")
    (tmp_path / "model" / "compressed").mkdir()
    (tmp_path / "model" / "compressed" / "mine.onnx").write_bytes(b"x")
    package = seal_package(tmp_path / "model", solder.manifest)
    with pytest.raises(CompressError, match="has a folder compressed/ of its own"):
        compress(Request(package, dataset, tmp_path / "out", "2"))


@pytest.mark.parametrize(
    ("version", "following"), [("1", "1-c1"), ("1-c1", "1-c2"), ("1-c9", "1-c10"), ("2.0-rc", "2.0-rc-c1")]
)
def test_the_next_version_is_newer_and_older_than_the_authors_next(version: str, following: str) -> None:
    assert next_version(version) == following


def test_progress_is_told_from_preparing_to_the_last_picture(solder: Package, dataset: Dataset, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    compress(Request(solder, dataset, tmp_path, "2", kinds=("u8s8",)), lambda *step: told.append(step))
    steps = list(dict.fromkeys(step for step, _, _ in told))
    assert steps == ["preparing", "making u8s8", "calibrating", "judging"]
    assert told[-1][1] == told[-1][2] >= 500
