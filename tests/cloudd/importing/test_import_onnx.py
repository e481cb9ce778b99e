"""ONNX files become packages that answer as the files do, or are refused with what is missing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign_models import LABELS, SIDE, Take, brightness, save
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cloudd.importing import ImportRefused, Outcome, Request, import_model, onnx_file, read_lineage
from edgekit.architectures import Spec, build
from edgekit.packages import PackageError, open_package
from edgekit.runtimes import ModelError, open_session
from edgekit.runtimes.onnx_reader import read_references
from edgekit.vision.classification import Classifier, softmax


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, shades: Path) -> tuple[Path, Outcome]:
    """A file that needs no change, and what came of it."""
    folder = tmp_path_factory.mktemp("plain")
    source = save(brightness(), folder / "m.onnx")
    request = Request(
        source=source, name="shades", out=folder / "out", labels=LABELS, pictures=shades, normalise="unit"
    )
    return source, import_model(request)


_WHOLE = brightness(ending="Softmax", listed=True, sides=("h", 16)).SerializeToString()


def refusal(take: Take, source: Path, tmp_path: Path, **wishes: object) -> str:
    """What it says; nothing is left behind."""
    with pytest.raises((ImportRefused, ModelError)) as caught:
        take(source, **wishes)
    assert not list((tmp_path / "out").glob("*")) and not list((tmp_path / "out").glob(".*"))
    return str(caught.value)


def test_a_file_that_needs_no_change_is_in_the_package_byte_for_byte(plain: tuple[Path, Outcome]) -> None:
    source, outcome = plain
    package = open_package(Path(outcome.package))
    assert package.path("model.onnx").read_bytes() == source.read_bytes()
    assert outcome.lineage.sameness.how == "bytes" and outcome.lineage.changes == []
    assert outcome.lineage.source.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert package.labels == list(LABELS) and package.manifest.output.kind == "logits"
    assert outcome.lineage == read_lineage(package)
    with_model = Classifier.load(package)
    assert with_model.prove() == outcome.samples == 6
    with_model.close()


def test_labelled_pictures_judge_the_model_and_pin_right_answers_only(plain: tuple[Path, Outcome]) -> None:
    _, outcome = plain
    figures = outcome.lineage.figures
    assert figures is not None and figures.right.hits == figures.pictures == 24
    assert outcome.lineage.pinned == "labels"
    samples = open_package(Path(outcome.package)).manifest.samples
    assert sorted(one.label for one in samples) == sorted(LABELS * 2)
    assert all(one.score is not None and one.score > 0.5 for one in samples)


def test_pictures_without_labels_pin_what_the_model_answers(take: Take, tmp_path: Path, unlabelled: Path) -> None:
    outcome = take(save(brightness(), tmp_path / "m.onnx"), pictures=unlabelled)
    assert outcome.lineage.pinned == "answers" and outcome.lineage.figures is None and outcome.samples == 6


def test_the_same_request_gives_the_same_package_and_another_of_its_name_is_refused(
    take: Take, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save(brightness(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    one = take(source, pictures=None, out=Path("out"))
    other = take(source, pictures=None, out=tmp_path / "again")
    assert open_package(Path(one.package)).digest == open_package(Path(other.package)).digest
    assert one.samples == 0 and one.lineage.pinned == "" and one.lineage.learning.reason == ""
    with pytest.raises(PackageError, match="shades@1"):
        take(save(brightness(ending="Softmax"), tmp_path / "m.onnx"), pictures=None)
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["shades@1"]


def test_how_pixels_become_values_is_asked_with_what_each_way_gives(take: Take, tmp_path: Path) -> None:
    said = refusal(take, save(brightness(), tmp_path / "m.onnx"), tmp_path, normalise="")
    assert "say --normalise NAME" in said and "ToTensor" in said and "mean=M scale=S" in said
    first, *others = said.split("it gets\n")[1].splitlines()
    assert first == "  24 of 24 right with --normalise unit"
    assert any("with --normalise bytes" in one and not one.startswith("  24") for one in others)


def test_mean_and_scale_can_be_said_as_numbers(take: Take, tmp_path: Path) -> None:
    wishes = {"mean": [0.0], "scale": [1 / 255], "colour": "bgr"}
    outcome = take(save(brightness(), tmp_path / "m.onnx"), normalise="", input=wishes)
    assert outcome.input.colour == "bgr" and outcome.lineage.input["scale"] == "said"
    assert outcome.lineage.input["width"] == "read" and outcome.lineage.input["interpolation"] == "assumed"


def test_a_last_softmax_is_taken_off_and_the_probabilities_stay(take: Take, tmp_path: Path) -> None:
    source = save(brightness(ending="Softmax"), tmp_path / "m.onnx")
    outcome = take(source)
    package = open_package(Path(outcome.package))
    assert outcome.lineage.changes == ['the last Softmax is gone: "answer" gives logits']
    same = outcome.lineage.sameness
    assert same.how == "outputs" and same.pictures == 16 and same.noise == 4 and same.largest < 1e-5
    assert package.manifest.output.kind == "logits"
    x = np.random.default_rng(3).random((1, 3, SIDE, SIDE), np.float32)
    theirs, ours = (
        open_session(path, "onnxruntime").run({"input": x})[0] for path in (source, package.path("model.onnx"))
    )
    np.testing.assert_allclose(softmax(ours), theirs, atol=1e-6)


def test_weights_among_the_inputs_are_taken_off_that_list(take: Take, tmp_path: Path) -> None:
    outcome = take(save(brightness(listed=True, batch=1), tmp_path / "m.onnx"))
    assert outcome.lineage.changes == ["7 weights are no longer listed among the inputs"]
    model = onnx.load(Path(outcome.package) / "model.onnx")
    assert [one.name for one in model.graph.input] == ["input"] and model.ir_version == 4
    assert outcome.lineage.sameness.largest < 1e-5


def test_an_open_size_is_asked_and_then_closed(take: Take, tmp_path: Path) -> None:
    source = save(brightness(sides=("h", "w")), tmp_path / "m.onnx")
    assert "several sizes" in refusal(take, source, tmp_path)
    outcome = take(source, input={"width": 24, "height": 16}, pictures=None)
    assert (outcome.input.width, outcome.input.height) == (24, 16)
    assert outcome.lineage.changes == ["the input is 24x16 pixels, where the file leaves the size open"]
    assert outcome.lineage.learning.possible == ["batchnorm", "head", "last-blocks", "full"]


def test_labels_are_asked_and_counted(take: Take, tmp_path: Path) -> None:
    source = save(brightness(), tmp_path / "m.onnx")
    assert 'say --labels FILE, one label a line in the order of the outputs ("answer" ?x3)' in refusal(
        take, source, tmp_path, labels=()
    )
    said = refusal(take, source, tmp_path, labels=("dark", "bright"))
    assert "there are 2 labels, but no output has as many values" in said and "--detection head=NAME" in said


def test_labels_in_the_metadata_are_read(take: Take, tmp_path: Path) -> None:
    model = brightness()
    entry = model.metadata_props.add()
    entry.key, entry.value = "names", "{0: 'dark', 1: 'middle', 2: 'bright'}"
    outcome = take(save(model, tmp_path / "m.onnx"), labels=(), pictures=None)
    assert open_package(Path(outcome.package)).labels == list(LABELS)


@pytest.mark.parametrize("text", ["__import__('os').system('x')", "{0: 1}", "[" * 5000, "{5: 'a'}", "'text'"])
def test_metadata_that_names_no_labels_is_left_alone(tmp_path: Path, text: str) -> None:
    model = brightness()
    entry = model.metadata_props.add()
    entry.key, entry.value = "names", text
    source = save(model, tmp_path / "m.onnx")
    (tmp_path / "root").mkdir()
    taken = onnx_file.take(source, onnx_file.read_model(source), read_references(source), tmp_path / "root", None, "")
    assert taken.labels == () and taken.metadata == {"names": text}


def test_which_of_two_outputs_answers_is_asked(take: Take, tmp_path: Path) -> None:
    source = save(brightness(twice=True), tmp_path / "m.onnx")
    assert "say --output name=NAME" in refusal(take, source, tmp_path)
    outcome = take(source, output={"name": "answer"}, pictures=None)
    assert open_package(Path(outcome.package)).manifest.output.name == "answer"


def test_a_yes_or_no_for_each_label_is_no_classifier(take: Take, tmp_path: Path) -> None:
    assert "as of a Sigmoid" in refusal(take, save(brightness(ending="Sigmoid"), tmp_path / "m.onnx"), tmp_path)


def test_a_model_no_better_than_one_label_is_refused(take: Take, tmp_path: Path) -> None:
    said = refusal(take, save(brightness(), tmp_path / "m.onnx"), tmp_path, normalise="bytes")
    assert "of 24 pictures right, and always saying '" in said and "whether --normalise" in said


def test_learning_is_examined_and_the_node_that_forbids_it_is_named(
    take: Take, tmp_path: Path, plain: tuple[Path, Outcome]
) -> None:
    whole = plain[1].lineage.learning
    assert whole.possible == ["batchnorm", "head", "last-blocks", "full"] and whole.normalisations == 1
    assert whole.loss is not None and 0 < whole.loss < 100
    part = take(save(brightness(middle="LRN"), tmp_path / "n.onnx"), pictures=None).lineage.learning
    assert part.reason == 'node "the_LRN": operator LRN has no gradient rule'
    assert part.rungs["head"] == "" and part.reached == 2 and part.rungs["last-blocks"] == part.reason


def test_a_model_without_normalisation_says_so(take: Take, tmp_path: Path) -> None:
    model = brightness()
    place = next(i for i, node in enumerate(model.graph.node) if node.op_type == "BatchNormalization")
    model.graph.node[place].CopyFrom(helper.make_node("Identity", ["c"], ["b"], name="bn"))
    for one in [one for one in model.graph.initializer if one.name.startswith("bn.")]:
        model.graph.initializer.remove(one)
    learning = take(save(model, tmp_path / "m.onnx"), pictures=None).lineage.learning
    assert "exporters fold it" in learning.rungs["batchnorm"] and learning.rungs["full"] == ""


def test_a_centre_point_detector_can_learn_but_for_a_head_in_closed_form(take: Take, tmp_path: Path) -> None:
    spec = Spec(architecture="centre_point", classes=2, input_width=32, input_height=32, width=0.25)
    source = save(build(spec).model, tmp_path / "m.onnx")
    table = {"head": "centernet", "outputs": ["heat", "size", "offset"]}
    found = take(source, detection=table, labels=("a", "b"), pictures=None).lineage.learning
    assert found.possible == ["batchnorm", "last-blocks", "full"] and "last blocks" in found.rungs["head"]


def test_half_precision_weights_are_seen_and_cannot_learn(take: Take, tmp_path: Path) -> None:
    model = brightness()
    weight = next(one for one in model.graph.initializer if one.name == "fc.weight")
    half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), "fc.half")
    model.graph.initializer.remove(weight)
    model.graph.initializer.append(half)
    model.graph.node.insert(0, helper.make_node("Cast", ["fc.half"], ["fc.weight"], to=TensorProto.FLOAT, name="cast"))
    outcome = take(save(model, tmp_path / "m.onnx"), pictures=None)
    assert open_package(Path(outcome.package)).manifest.variants[0].precision == "fp16"
    assert "fc.half is float16" in outcome.lineage.learning.reason


def external(folder: Path, location: str, into: str | None = None) -> Path:
    """A model whose convolution lies in another file, at `into` below `folder`."""
    model = brightness()
    tensor = next(one for one in model.graph.initializer if one.name == "conv.weight")
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(data)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    folder.mkdir(exist_ok=True)
    if into is not None:
        (folder / into).parent.mkdir(parents=True, exist_ok=True)
        (folder / into).write_bytes(data)
    return save(model, folder / "m.onnx")


def test_external_data_in_or_below_the_folder_of_the_model_comes_along(take: Take, tmp_path: Path) -> None:
    location = "deep/er/weights.bin"
    outcome = take(external(tmp_path / "in", location, location), pictures=None)
    package = open_package(Path(outcome.package))
    assert location in package.manifest.files
    Classifier.load(package).prove()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../weights.bin", "outside its folder"),
        ("/etc/hostname", "outside its folder"),
        ("gone.bin", "gone.bin cannot be read"),
    ],
)
def test_external_data_elsewhere_is_refused(take: Take, tmp_path: Path, location: str, message: str) -> None:
    source = external(tmp_path / "in", location)
    (tmp_path / "weights.bin").write_bytes(bytes(48))
    assert message in refusal(take, source, tmp_path)


def test_external_data_through_a_link_is_refused(take: Take, tmp_path: Path) -> None:
    source = external(tmp_path / "in", "weights.bin")
    (tmp_path / "secret").write_bytes(bytes(48))
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "secret")
    assert "symbolic link" in refusal(take, source, tmp_path)


@pytest.mark.parametrize("location", ["labels.txt", "package.toml", "samples/0.png"])
def test_external_data_cannot_take_the_names_of_the_package(take: Take, tmp_path: Path, location: str) -> None:
    assert "a name that the package needs itself" in refusal(
        take, external(tmp_path / "in", location, location), tmp_path
    )


def test_what_cannot_be_run_is_refused_with_the_reason(take: Take, tmp_path: Path) -> None:
    vendor = brightness()
    vendor.graph.node[0].domain = "com.vendor"
    vendor.opset_import.append(helper.make_opsetid("com.vendor", 1))
    several = brightness()
    several.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    eight = brightness(batch=8)
    training = brightness()
    norm = next(one for one in training.graph.node if one.op_type == "BatchNormalization")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    for model, message in (
        (training, "node bn (BatchNormalization) is in training mode; export it again after model.eval()"),
        (vendor, 'needs the operator "Conv" of the domain "com.vendor"'),
        (several, "the model has 2 inputs"),
        (eight, "one picture has the shape"),
    ):
        assert message in refusal(take, save(model, tmp_path / "m.onnx"), tmp_path)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12), st.integers(0, 10**6))
def test_no_damage_to_a_file_raises_anything_but_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(_WHOLE)
    for place, value in changes:
        data[place % len(data)] = value
    root = tmp_path_factory.getbasetemp() / "damaged"
    root.mkdir(exist_ok=True)
    source = root / "in.onnx"
    source.write_bytes(bytes(data[: end % (2 * len(data)) + 1]))
    try:
        references = read_references(source)
        model = onnx_file.read_model(source)
        onnx_file.take(source, model, references, root, (8, 8), "answer")
    except (ImportRefused, ModelError, OSError) as error:
        assert str(error)
