"""A service's pipeline against the same thing done by hand: regions, tiles, crop, decode, raw pixels, odd PNGs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import toml
from edgekit.packages import InputSpec, Manifest, OutputSpec, PackageError, Variant, parse_manifest, seal_package
from edgekit.packages.manifest import check_manifest, manifest_text
from edgekit.services import Pipeline, Tiles, check_pipeline
from edgekit.vision.classification import Classified, Classifier, softmax
from edgekit.vision.images import ImageError, encode_jpeg, encode_png
from edgekit.vision.pipeline import MAX_TILES, Pipelined, aggregate, regions

LABELS = ["red", "green", "blue"]
SIDE = 8
Image = NDArray[np.uint8]
EDGES = st.lists(st.floats(0, 1), min_size=2, max_size=2, unique=True).map(sorted)


def model() -> onnx.ModelProto:
    """Mean of each colour plane, times ten: logits of red, green, blue."""
    weight = np.diag([10.0, 10.0, 10.0]).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return made


def manifest(**changes: Any) -> Manifest:
    return Manifest(
        name="colours",
        version="1",
        labels="labels.txt",
        input=InputSpec(**{"width": SIDE, "height": SIDE, "scale": [1 / 255], **changes}),
        output=OutputSpec(),
        variants=[Variant(file="model.onnx")],
    )


def classifier(root: Path, **changes: Any) -> Classifier:
    root.mkdir(exist_ok=True)
    (root / "model.onnx").write_bytes(model().SerializeToString())
    (root / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return Classifier.load(seal_package(root, manifest(**changes)))


def by_hand(image: Image) -> NDArray[np.float32]:
    """What the model must say about these RGB pixels, with OpenCV and numpy alone."""
    shrinks = image.shape[0] >= SIDE and image.shape[1] >= SIDE
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    small = image if image.shape[:2] == (SIDE, SIDE) else cv2.resize(image, (SIDE, SIDE), interpolation=method)
    return softmax(np.asarray(small, np.float32).mean(axis=(0, 1)) / 255 * 10)


def noise(height: int, width: int, seed: int = 0) -> Image:
    """Coarse colourful patches, so that parts of the picture differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (-(-height // 5), -(-width // 5), 3), np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((5, 5, 1), np.uint8))[:height, :width])


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return classifier(tmp_path_factory.mktemp("models") / "p")


def test_no_pipeline_table_and_an_empty_one_say_the_same(colours: Classifier) -> None:
    picture = encode_png(noise(40, 60))
    plain, through = colours.classify(picture), Pipelined(colours, Pipeline()).classify(picture)
    np.testing.assert_array_equal(plain.probabilities, through.probabilities)
    assert through.region == (0, 0, 60, 40)
    assert set(through.timings_ms) == {"decode", "infer"}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.integers(1, 90), height=st.integers(1, 70))
def test_a_region_of_interest_equals_cutting_it_out(colours: Classifier, data: Any, width: int, height: int) -> None:
    image = noise(height, width, width)
    left = data.draw(st.integers(0, width - 1))
    top = data.draw(st.integers(0, height - 1))
    right = data.draw(st.integers(left + 1, width))
    bottom = data.draw(st.integers(top + 1, height))
    expected = by_hand(image[top:bottom, left:right])
    box = [left, top, right, bottom]
    pixels = Pipelined(colours, Pipeline(roi=box, roi_unit="pixel")).classify(encode_png(image))
    np.testing.assert_allclose(pixels.probabilities, expected, atol=2e-5)
    assert pixels.region == tuple(box)
    share = [left / width, top / height, right / width, bottom / height]
    fractions = Pipelined(colours, Pipeline(roi=share)).classify(encode_png(image))
    assert fractions.region == tuple(box)
    np.testing.assert_array_equal(fractions.probabilities, pixels.probabilities)


@settings(max_examples=200)
@given(
    width=st.integers(1, 400), height=st.integers(1, 400), tile=st.tuples(st.integers(8, 120), st.integers(8, 120)),
    overlap=st.integers(0, 100), x=EDGES, y=EDGES,
)  # fmt: skip
def test_tiles_are_whole_and_cover_every_pixel_of_the_region(
    width: int, height: int, tile: tuple[int, int], overlap: int, x: list[float], y: list[float]
) -> None:
    overlap = min(overlap, min(tile) - 1)
    roi = [x[0], y[0], x[1], y[1]]
    tiles = Tiles(width=tile[0], height=tile[1], overlap=overlap, worst=["red"])
    (left, top, right, bottom) = regions(Pipeline(roi=roi), width, height)[0]
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    try:
        boxes = regions(Pipeline(roi=roi, tiles=tiles), width, height)
    except ImageError as error:
        assert f"{MAX_TILES} are allowed" in str(error)
        return
    assert len(set(boxes)) == len(boxes) <= MAX_TILES
    covered = np.zeros((height, width), np.int32)
    for x_start, y_start, x_end, y_end in boxes:
        assert (x_end - x_start, y_end - y_start) == (min(tile[0], right - left), min(tile[1], bottom - top))
        covered[y_start:y_end, x_start:x_end] += 1
    assert (covered[top:bottom, left:right] > 0).all()
    assert covered.sum() == covered[top:bottom, left:right].sum()
    columns = sorted({box[0] for box in boxes})
    steps = [after - before for before, after in itertools.pairwise(columns)]
    assert all(step == tile[0] - overlap for step in steps[:-1])
    assert all(0 < step <= tile[0] - overlap for step in steps)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(8, 80), height=st.integers(8, 80), size=st.integers(12, 40), overlap=st.integers(0, 5))
def test_tiles_equal_doing_it_by_hand(colours: Classifier, width: int, height: int, size: int, overlap: int) -> None:
    image = noise(height, width, width * height)
    picture = encode_png(image)
    tiles = Tiles(width=size, height=size, overlap=overlap, aggregate="mean")
    boxes = regions(Pipeline(tiles=tiles), width, height)
    answers = np.stack([by_hand(image[y:y_end, x:x_end]) for x, y, x_end, y_end in boxes])
    mean = Pipelined(colours, Pipeline(tiles=tiles)).classify(picture)
    expected = answers.mean(axis=0)
    np.testing.assert_allclose(mean.probabilities, expected, atol=2e-5)
    ordered = np.sort(expected)
    assert mean.score == pytest.approx(ordered[-1], abs=2e-5)
    assert mean.margin == pytest.approx(ordered[-1] - ordered[-2], abs=4e-5)

    worst = Pipelined(
        colours, Pipeline(tiles=Tiles(width=size, height=size, overlap=overlap, worst=["blue", "red"]))
    ).classify(picture)
    said = [LABELS[answer.argmax()] for answer in answers]
    label = next(label for label in ("blue", "red", "green") if label in said)
    margins = [np.sort(a)[-1] - np.sort(a)[-2] for a, one in zip(answers, said, strict=True) if one == label]
    assert worst.label == label
    assert worst.margin == pytest.approx(min(margins), abs=4e-5)


def test_every_tiles_answer_can_be_had_instead_of_one_of_all(colours: Classifier) -> None:
    pipeline = Pipeline(tiles=Tiles(width=20, height=20, worst=["red"]))
    data = encode_png(noise(30, 50, 3))
    tiled = Pipelined(colours, pipeline).regions(data)
    assert (tiled.width, tiled.height) == (50, 30) and tiled.timings_ms.keys() == {"decode", "infer"}
    assert [answer.region for answer in tiled.answers] == regions(pipeline, 50, 30)
    whole = Pipelined(colours, pipeline).classify(data)
    assert aggregate(tiled.answers, pipeline.tiles, colours.labels).region == whole.region


def one(label: str, margin: float) -> Classified:
    return Classified(label, LABELS.index(label), 0.5 + margin / 2, margin, np.zeros(3, np.float32))


def test_the_least_certain_deciding_tile_gives_the_margin() -> None:
    tiles = Tiles(width=8, height=8, worst=["red", "blue"])
    answers = [one("green", 0.1), one("blue", 0.9), one("blue", 0.4), one("green", 0.8)]
    assert aggregate(answers, tiles, LABELS) is answers[2], "green tiles did not decide, however doubtful"
    assert aggregate([answers[0], answers[3]], tiles, LABELS) is answers[0], "all tiles decide that all is well"
    both = aggregate([*answers, one("red", 0.99)], tiles, LABELS)
    assert (both.label, both.margin) == ("red", 0.99)


def test_labels_that_are_not_listed_come_last_in_the_models_order() -> None:
    tiles = Tiles(width=8, height=8, worst=["blue"])
    assert aggregate([one("green", 0.5), one("red", 0.5)], tiles, LABELS).label == "red"
    assert aggregate([one("green", 0.5), one("blue", 0.5)], tiles, LABELS).label == "blue"
    unknown_to_this_model = Tiles(width=8, height=8, worst=["scratch", "green"])
    assert aggregate([one("green", 0.5), one("red", 0.5)], unknown_to_this_model, LABELS).label == "green"


def test_a_region_outside_of_the_picture_is_refused_in_a_sentence(colours: Classifier) -> None:
    outside = Pipelined(colours, Pipeline(roi=[10, 10, 70, 30], roi_unit="pixel"))
    with pytest.raises(ImageError, match="reaches to 70x30, outside of this picture of 60x40 pixels"):
        outside.classify(encode_png(noise(40, 60)))
    assert outside.classify(encode_png(noise(40, 80))).label in LABELS


def test_too_many_tiles_are_refused_before_anything_is_decoded(colours: Classifier) -> None:
    many = Pipelined(colours, Pipeline(tiles=Tiles(width=8, height=8, aggregate="mean")))
    with pytest.raises(ImageError, match="200x200 pixels make 625 tiles of 8x8; 256 are allowed"):
        many.classify(encode_png(noise(200, 200)))


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_reduced_jpeg_keeps_its_region(tmp_path: Path, factor: int) -> None:
    """The region is where it was, and it is decoded only as far down as the model's size allows."""
    image = np.zeros((SIDE * 2 * factor, SIDE * 3 * factor, 3), np.uint8)
    image[:, : SIDE * factor] = (200, 0, 0)
    image[:, SIDE * factor : 2 * SIDE * factor] = (0, 200, 0)
    image[:, 2 * SIDE * factor :] = (0, 0, 200)
    data = encode_jpeg(image, 95)
    reduced, full = classifier(tmp_path / "a"), classifier(tmp_path / "b", decode="full")
    for third, label in enumerate(LABELS):
        box = [third * SIDE * factor, 0, (third + 1) * SIDE * factor, SIDE * 2 * factor]
        for one_of in (reduced, full):
            answer = Pipelined(one_of, Pipeline(roi=box, roi_unit="pixel")).classify(data)
            assert (answer.label, answer.region) == (label, tuple(box))
            assert answer.score > 0.95
    shares = reduced.reduce_to((1 / 3, 1.0))
    assert shares == (SIDE * 3, SIDE)
    assert full.reduce_to() is None


def test_decode_follows_the_interpolation_unless_the_package_says_otherwise() -> None:
    assert InputSpec(width=8, height=8).reduced
    assert not InputSpec(width=8, height=8, interpolation="linear").reduced
    assert InputSpec(width=8, height=8, interpolation="antialias", decode="reduced").reduced
    assert not InputSpec(width=8, height=8, decode="full").reduced


def test_full_decode_is_the_exact_resize_of_every_pixel(tmp_path: Path) -> None:
    data = encode_jpeg(noise(200, 200), 95)
    exact = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    answer = classifier(tmp_path / "p", decode="full").classify(data)
    np.testing.assert_allclose(answer.probabilities, by_hand(np.asarray(exact, np.uint8)), atol=2e-5)


def test_the_packages_crop_is_cut_out_of_every_tile(tmp_path: Path) -> None:
    cropping = classifier(tmp_path / "p", crop=[0.25, 0.0, 0.75, 0.5])
    image = noise(60, 80)
    np.testing.assert_allclose(
        cropping.classify(encode_png(image)).probabilities, by_hand(image[0:30, 20:60]), atol=2e-5
    )
    halves = Pipelined(cropping, Pipeline(roi=[0.5, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(halves.classify(encode_png(image)).probabilities, by_hand(image[0:30, 50:70]), atol=2e-5)
    assert cropping.reduce_to() == (16, 16)


@pytest.mark.parametrize("crop", [[0, 0, 1], [0.5, 0, 0.5, 1], [0, 0, 1.1, 1], [-0.1, 0, 1, 1], [0, 0.6, 1, 0.5]])
def test_a_crop_that_is_none_is_refused(crop: list[float]) -> None:
    with pytest.raises(PackageError, match=r'"input.crop" is .* left, top, right and bottom'):
        check_manifest(manifest(crop=crop))


def test_new_keys_are_written_only_where_they_are_used() -> None:
    plain, cropped = manifest(), manifest(crop=[0.0, 0.0, 0.5, 1.0], decode="full")
    assert "crop" not in manifest_text(plain) and "decode" not in manifest_text(plain)
    files = {"labels.txt": "0" * 64, "model.onnx": "0" * 64}
    text = manifest_text(msgspec.structs.replace(cropped, files=files))
    again = parse_manifest(text.encode())
    assert again.input == cropped.input
    with pytest.raises(PackageError, match=r'"input.decode" is "half" in package.toml: one of "full", "reduced"'):
        parse_manifest(text.replace('decode = "full"', 'decode = "half"').encode())


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (Pipeline(roi=[0, 0, 1]), "left, top, right and bottom belong there"),
        (Pipeline(roi=[0, 0, 640, 480]), "fractions from 0 to 1"),
        (Pipeline(roi=[0.5, 0, 0.5, 1]), "left < right"),
        (Pipeline(roi=[0, 0, 0.5, 1], roi_unit="pixel"), "whole pixels"),
        (Pipeline(roi=[-1, 0, 4, 4], roi_unit="pixel"), "left < right"),
        (Pipeline(tiles=Tiles(width=8, height=9, overlap=8, aggregate="mean")), "must overlap by less"),
        (Pipeline(tiles=Tiles(width=8, height=8)), "the worst first"),
        (Pipeline(tiles=Tiles(width=8, height=8, worst=["a", "a"])), '"a" twice'),
    ],
)
def test_a_pipeline_that_no_picture_could_go_through_is_refused(pipeline: Pipeline, message: str) -> None:
    with pytest.raises(toml.TomlError, match=message):
        check_pipeline(pipeline)


# --- raw pixels and pictures of other kinds --------------------------------------------------------------------------


@pytest.mark.parametrize("colour", ["rgb", "bgr", "grey"])
@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_raw_pixels_are_prepared_like_a_png_of_them(tmp_path: Path, colour: str, channels: int) -> None:
    from edgekit.runtimes import TensorInfo
    from edgekit.vision.images import decode
    from edgekit.vision.preprocess import in_colour, prepare

    spec = InputSpec(width=SIDE, height=SIDE, colour=colour)  # type: ignore[arg-type]
    shape = (21, 34, channels) if channels else (21, 34)
    pixels = np.random.default_rng(channels).integers(0, 256, shape, np.uint8)
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
    stored = cv2.cvtColor(pixels, order[channels]) if channels in order else pixels
    png = cv2.imencode(".png", stored)[1].tobytes()
    planes = 1 if colour == "grey" else 3
    tensor = TensorInfo("x", (1, planes, SIDE, SIDE), "float32")
    expected = prepare(decode(png, spec.colour), spec, tensor)
    np.testing.assert_allclose(prepare(in_colour(pixels, spec), spec, tensor), expected, atol=1.0)


def test_a_classifier_takes_raw_pixels(colours: Classifier) -> None:
    image = noise(30, 40)
    assert colours.pixels(image).shape == (1, 3, SIDE, SIDE)
    raw = colours.classify_tensor(colours.pixels(image))
    np.testing.assert_array_equal(raw.probabilities, colours.classify(encode_png(image)).probabilities)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.broadcast_to(np.uint8(0), (6000, 6000, 3)),
    ],
)
def test_what_is_no_picture_is_refused(colours: Classifier, array: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"raw pixels are uint8 with|exceed the limit"):
        colours.pixels(array)


def test_grey_alpha_palette_and_sixteen_bit_pngs_are_read(colours: Classifier) -> None:
    image = noise(24, 24)
    expected = colours.classify(encode_png(image)).probabilities

    def classified(stored: NDArray[Any]) -> NDArray[np.float32]:
        return colours.classify(cv2.imencode(".png", stored)[1].tobytes()).probabilities

    bgr = image[:, :, ::-1]
    deep = (bgr.astype(np.uint16) << 8) | 0x80
    np.testing.assert_allclose(classified(deep), expected, atol=0.01)
    transparent = np.dstack([bgr, np.zeros(image.shape[:2], np.uint8)])
    np.testing.assert_array_equal(classified(transparent), expected)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(classified(grey), np.full(3, 1 / 3), atol=1e-5)
    np.testing.assert_allclose(classified(grey.astype(np.uint16) << 8), np.full(3, 1 / 3), atol=1e-5)


def test_the_orientation_that_a_camera_notes_is_ignored(colours: Classifier) -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, :20, 0], image[:, 20:, 2] = 200, 200
    data = encode_jpeg(image, 95)
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    exif = b"Exif\x00\x00" + tiff
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    left = Pipelined(colours, Pipeline(roi=[0, 0, 20, 20], roi_unit="pixel"))
    assert left.classify(turned).label == left.classify(data).label == "red"
