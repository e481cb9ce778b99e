from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.packages import InputSpec
from edgekit.runtimes.base import TensorInfo
from edgekit.training import Augmentation, BoxedExamples, LabelledExamples, Pictures, TrainingError
from edgekit.training.centre_targets import centre_targets, gaussian_radius
from edgekit.training.order import batches, class_weights, epoch_order
from edgekit.vision.detection.boxes import iou
from edgekit.vision.detection.heads import HeadConfig, make_head
from edgekit.vision.detection.metrics import Truth
from edgekit.vision.images import decode, encode_jpeg, encode_png
from edgekit.vision.preprocess import prepare, reduced_size

seeds = st.integers(0, 2**32 - 1)
balances = st.sampled_from(["none", "root", "full"])


def picture(seed: int, height: int = 30, width: int = 50) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(deadline=None, max_examples=30)
@given(
    seeds,
    st.sampled_from(["grey", "rgb", "bgr"]),
    st.sampled_from(["nchw", "nhwc"]),
    st.sampled_from(["stretch", "crop", "letterbox"]),
    st.sampled_from(["linear", "area", "antialias"]),
    st.booleans(),
)
def test_training_sees_what_serving_sees(
    seed: int, colour: Any, layout: Any, resize: Any, interpolation: Any, crop: bool
) -> None:
    spec = InputSpec(
        width=16, height=24, colour=colour, layout=layout, resize=resize, interpolation=interpolation,
        mean=[100.0], scale=[0.02], crop=[0.1, 0.2, 0.9, 0.7] if crop else None,
    )  # fmt: skip
    data = encode_jpeg(picture(seed, 97, 131))
    served = prepare(
        decode(data, colour, reduce_to=reduced_size(spec)), spec, TensorInfo("x", (None, None, None, None), "float32")
    )
    pictures = Pictures(lambda _: data, spec)
    for _ in range(2):  # the second time from memory
        np.testing.assert_array_equal(pictures.tensor(pictures.fitted(0).image), served)


def test_pictures_are_read_once_as_long_as_there_is_room() -> None:
    spec = InputSpec(width=10, height=10, colour="grey")
    reads: list[int] = []

    def read(place: int) -> bytes:
        reads.append(place)
        return encode_png(picture(place))

    pictures = Pictures(read, spec, cache_bytes=250)  # two pictures of 100 bytes
    for _ in range(3):
        for place in range(3):
            pictures.fitted(place)
    assert sorted(reads) == [0, 1, 2, 2, 2]


def test_a_picture_that_is_none_is_named() -> None:
    pictures = Pictures(lambda place: b"\xff\xd8 not really", InputSpec(width=8, height=8))
    with pytest.raises(TrainingError, match="picture 4 of the dataset cannot be used"):
        pictures.fitted(4)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), seeds, st.integers(0, 5), balances)
def test_an_epoch_shows_as_many_examples_as_there_are_and_each_seed_its_own_order(
    labels: list[int], seed: int, epoch: int, balance: Any
) -> None:
    array = np.array(labels)
    order = epoch_order(array, epoch, seed, balance)
    assert len(order) == len(labels)
    np.testing.assert_array_equal(order, epoch_order(array, epoch, seed, balance))
    if balance == "none":
        assert sorted(order) == list(range(len(labels)))
    if balance == "full":
        shown = np.bincount(array[order], minlength=5)[np.unique(array)]
        assert shown.max() - shown.min() <= 1
        for one in np.unique(array):
            times = np.bincount(order[array[order] == one], minlength=len(labels))[array == one]
            assert times.max() - times.min() <= 1


def test_epochs_differ_in_their_order() -> None:
    labels = np.zeros(50, int)
    assert not np.array_equal(epoch_order(labels, 0, 1), epoch_order(labels, 1, 1))
    assert not np.array_equal(epoch_order(labels, 0, 1), epoch_order(labels, 0, 2))


@given(st.integers(1, 100), st.integers(1, 40))
def test_all_batches_but_a_single_short_one_are_full(count: int, size: int) -> None:
    made = batches(np.arange(count), size)
    assert [len(one) for one in made] == ([size] * (count // size) if count >= size else [count])
    assert len(np.unique(np.concatenate(made))) == sum(len(one) for one in made)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=50), st.sampled_from(["root", "full"]))
def test_class_weights_are_one_on_average_and_favour_what_is_rare(labels: list[int], balance: Any) -> None:
    array = np.array(labels)
    weights = class_weights(array, 5, balance)
    assert weights[array].mean() == pytest.approx(1, rel=1e-5)
    sizes = np.bincount(array, minlength=5)
    present = np.flatnonzero(sizes)
    order = present[np.argsort(sizes[present], kind="stable")]
    assert (np.diff(weights[order]) <= 1e-6).all()
    if balance == "full":
        shares = weights[present] * sizes[present]
        assert shares.max() == pytest.approx(shares.min(), rel=1e-4)


def test_class_weights_need_labels_in_their_range() -> None:
    with pytest.raises(TrainingError, match="from 0 to 1"):
        class_weights(np.array([0, 2]), 2)


def some_boxes(seed: int, count: int, side: int) -> NDArray[np.float32]:
    """Boxes whose centres lie in different cells of 4 pixels."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation((side // 8) ** 2)[:count]
    centres = np.stack([cells % (side // 8), cells // (side // 8)], axis=1) * 8 + rng.uniform(0.2, 7.8, (count, 2))
    half = rng.uniform(2, 9, (count, 2))
    return np.concatenate([centres - half, centres + half], axis=1).astype(np.float32)


@settings(deadline=None)
@given(seeds, st.integers(0, 6))
def test_a_perfect_network_gives_back_the_boxes_that_its_targets_were_made_of(seed: int, count: int) -> None:
    side, classes = 64, 3
    boxes, labels = some_boxes(seed, count, side), np.random.default_rng(seed).integers(0, classes, count)
    maps = centre_targets(boxes, labels, classes, side // 4, side // 4, 4)
    heat = np.clip(maps["heat"].astype(np.float64), 1e-6, 1 - 1e-6)
    outputs = [np.log(heat / (1 - heat)).astype(np.float32), maps["size"], maps["offset"]]
    tensors = [
        TensorInfo(name, (1, channels, side // 4, side // 4), "float32")
        for name, channels in (("heat", classes), ("size", 2), ("offset", 2))
    ]
    head = make_head("centernet", HeadConfig(side, side, classes, 0.5, ("heat", "size", "offset")), tensors)
    found = head.decode([array[np.newaxis] for array in outputs])
    peaks = found.scores > 0.99
    assert peaks.sum() == count
    for box, label in zip(boxes, labels, strict=True):
        nearest = np.abs(found.boxes - box).sum(axis=1).argmin()
        np.testing.assert_allclose(found.boxes[nearest], box, atol=1e-3)
        assert found.labels[nearest] == label


def test_of_two_boxes_in_one_cell_the_smaller_one_is_kept_and_a_centre_outside_is_left_out() -> None:
    boxes = np.array([[0, 0, 20, 20], [8, 8, 12, 12], [60, 0, 90, 10]], np.float32)
    maps = centre_targets(boxes, np.array([0, 0, 0]), 1, 16, 16, 4)
    assert maps["centres"].sum() == 1
    np.testing.assert_allclose(maps["size"][:, 2, 2], [1, 1])


@given(st.floats(1, 200), st.floats(1, 200), st.floats(0.3, 0.9))
def test_corners_that_move_by_the_radius_keep_the_overlap(height: float, width: float, overlap: float) -> None:
    r = gaussian_radius(height, width, overlap)
    assert r >= 0
    box = np.array([[0, 0, width, height]], np.float64)
    for moves in ((r, r, r, r), (r, r, -r, -r), (-r, -r, r, r), (-r, -r, -r, -r)):
        moved = box + np.array([moves])
        if (moved[:, 2:] > moved[:, :2]).all():
            assert iou(moved, box)[0, 0] >= overlap - 1e-3


def labelled(seed: int = 0, **other: Any) -> LabelledExamples:
    files = [encode_png(picture(place)) for place in range(6)]
    pictures = Pictures(files.__getitem__, InputSpec(width=12, height=8))
    return LabelledExamples(pictures, np.array([0, 1, 2, 0, 1, 2]), 3, seed=seed, **other)


def test_a_batch_depends_on_its_place_in_the_training_and_on_nothing_else() -> None:
    spec = Augmentation(flip_horizontal=True, noise=20)
    places = np.array([4, 1])
    first = labelled(augmentation=spec).feeds(places, 3, 10)
    examples = labelled(augmentation=spec)
    examples.feeds(np.array([0, 5]), 0, 0)
    again = examples.feeds(places, 3, 10)
    assert first.keys() == again.keys() == {"image", "labels"}
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["labels"], [1, 1])
    assert first["image"].shape == (2, 3, 8, 12)
    for epoch, start, seed in ((4, 10, 0), (3, 12, 0), (3, 10, 1)):
        other = labelled(seed, augmentation=spec).feeds(places, epoch, start)
        assert not np.array_equal(first["image"], other["image"])


def test_an_example_that_is_shown_twice_in_an_epoch_looks_different() -> None:
    fed = labelled(augmentation=Augmentation(noise=20)).feeds(np.array([2, 2]), 0, 0)
    assert not np.array_equal(fed["image"][0], fed["image"][1])


def test_what_belongs_to_each_example_follows_it() -> None:
    teacher = np.arange(18, dtype=np.float32).reshape(6, 3)
    fed = labelled(each={"teacher": teacher}).plain(np.array([5, 0]))
    np.testing.assert_array_equal(fed["teacher"], teacher[[5, 0]])


@pytest.mark.parametrize("rows", [np.zeros((5, 3), np.float32), np.full((6, 3), np.nan, np.float32)])
def test_rows_that_are_missing_or_not_finite_are_refused(rows: Any) -> None:
    with pytest.raises(TrainingError, match='"teacher" needs one finite row for each of the 6'):
        labelled(each={"teacher": rows})


def boxed(truths: list[Truth], **other: Any) -> BoxedExamples:
    files = [encode_png(picture(place, 64, 128)) for place in range(len(truths))]
    pictures = Pictures(files.__getitem__, InputSpec(width=64, height=64, resize="letterbox"))
    return BoxedExamples(pictures, truths, 2, 4, **other)


def test_boxes_follow_the_picture_into_the_model_and_through_augmentation() -> None:
    truth = Truth(np.array([[32, 16, 64, 48]], np.float32), np.array([1]))
    examples = boxed([truth, truth], augmentation=Augmentation(flip_horizontal=True))
    np.testing.assert_allclose(examples.boxes(0), [[16, 24, 32, 40]])
    plain = examples.plain(np.array([0]))
    assert plain["heat_target"][0, 1, 8, 6] == 1 and plain["heat_target"][0, 0].max() == 0
    np.testing.assert_allclose(plain["size_target"][0, :, 8, 6], [4, 4])
    columns = {
        int(examples.feeds(np.array([0]), 0, start)["centres"][0, 0].sum(axis=0).argmax()) for start in range(20)
    }
    assert columns == {6, 10}  # 24 and 64 - 24 pixels, the latter exactly at the edge of a cell


def test_a_picture_is_balanced_by_its_rarest_class() -> None:
    both = Truth(np.array([[0, 0, 9, 9], [9, 9, 30, 30]], np.float32), np.array([0, 1]))
    one = Truth(np.array([[0, 0, 9, 9]], np.float32), np.array([0]))
    none = Truth(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert boxed([both, one, none]).groups.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("box", "label", "words"),
    [
        ([5, 5, 5, 9], 0, "without a size"),
        ([0, 0, np.nan, 9], 0, "without a size"),
        ([0, 0, 9, 9], 2, "outside of 0 to 1"),
    ],
)
def test_boxes_that_cannot_be_learnt_are_refused(box: Any, label: int, words: str) -> None:
    with pytest.raises(TrainingError, match=f"picture 0 has a box.*{words}"):
        boxed([Truth(np.array([box], np.float32), np.array([label]))])
