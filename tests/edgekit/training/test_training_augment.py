from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.training.augment import Augmentation, augment, draw_affine, move_boxes

NONE = np.zeros((0, 4), np.float32)
EVERYTHING = Augmentation(
    flip_horizontal=True,
    flip_vertical=True,
    quarter_turns=True,
    rotation=20,
    scale=0.3,
    shift=0.2,
    brightness=0.2,
    contrast=0.3,
    noise=10,
    cut_out=0.3,
)
seeds = st.integers(0, 2**32 - 1)


def picture(seed: int, height: int = 20, width: int = 20, channels: int = 3) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels == 3 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(deadline=None)
@given(seeds, st.sampled_from([1, 3]))
def test_the_same_draw_gives_the_same_picture_and_leaves_the_original_alone(seed: int, channels: int) -> None:
    image = picture(seed, channels=channels)
    before = image.copy()
    first, again = (augment(image, NONE, EVERYTHING, draw(seed))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(image, before)
    assert first.shape == image.shape and first.dtype == np.uint8


@given(seeds)
def test_the_defaults_change_nothing(seed: int) -> None:
    image = picture(seed)
    boxes = np.array([[2, 3, 9, 12]], np.float32)
    changed, moved, kept = augment(image, boxes, Augmentation(), draw(seed))
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(moved, boxes)
    assert kept.tolist() == [0]


@settings(deadline=None)
@given(seeds)
def test_flips_and_quarter_turns_move_whole_pixels(seed: int) -> None:
    image = picture(seed)
    spec = Augmentation(flip_horizontal=True, flip_vertical=True, quarter_turns=True)
    changed, _, _ = augment(image, NONE, spec, draw(seed))
    turns = [np.rot90(flipped, times) for flipped in (image, image[:, ::-1]) for times in range(4)]
    assert any(np.array_equal(changed, turn) for turn in turns)


def test_all_eight_ways_to_lay_a_square_down_occur() -> None:
    image = picture(1)
    spec = Augmentation(flip_horizontal=True, quarter_turns=True)
    assert len({augment(image, NONE, spec, draw(seed))[0].tobytes() for seed in range(100)}) == 8


def test_a_picture_that_is_not_square_is_never_laid_on_its_side() -> None:
    image = picture(1, height=10, width=30)
    spec = Augmentation(quarter_turns=True)
    ways = {augment(image, NONE, spec, draw(seed))[0].tobytes() for seed in range(50)}
    assert ways == {image.tobytes(), np.ascontiguousarray(image[::-1, ::-1]).tobytes()}


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(8, 24), st.integers(8, 24), st.integers(6, 14), st.integers(6, 14))
def test_a_box_goes_where_its_object_goes(seed: int, left: int, top: int, width: int, height: int) -> None:
    image = np.zeros((48, 48), np.uint8)
    image[top : top + height, left : left + width] = 255
    boxes = np.array([[left, top, left + width, top + height]], np.float32)
    spec = Augmentation(flip_horizontal=True, flip_vertical=True, quarter_turns=True, scale=0.2, shift=0.05)
    changed, moved, kept = augment(image, boxes, spec, draw(seed))
    if len(kept):
        rows, columns = np.nonzero(changed > 127)
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(moved[0], seen, atol=1.01)


@given(seeds)
def test_boxes_stay_inside_and_those_that_leave_are_dropped(seed: int) -> None:
    rng = draw(seed)
    low = rng.uniform(0, 40, (6, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 24, (6, 2))], axis=1).astype(np.float32)
    matrix = draw_affine(64, 64, Augmentation(rotation=180, scale=0.9, shift=0.5), rng)
    moved, kept = move_boxes(boxes, matrix, 64, 64)
    assert len(moved) == len(kept)
    assert (moved[:, :2] >= 0).all() and (moved[:, 2:] <= 64).all()
    assert (moved[:, 2:] > moved[:, :2]).all()


def test_a_box_of_which_little_is_left_is_dropped() -> None:
    boxes = np.array([[0, 0, 10, 10], [30, 0, 40, 10]], np.float32)
    matrix = np.array([[1.0, 0, -7], [0, 1, 0]])
    moved, kept = move_boxes(boxes, matrix, 40, 40)
    assert kept.tolist() == [1]
    np.testing.assert_allclose(moved, [[23, 0, 33, 10]])


@given(seeds)
def test_brightness_and_contrast_keep_the_order_of_grey_levels(seed: int) -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    changed, _, _ = augment(image, NONE, Augmentation(brightness=0.3, contrast=0.5), draw(seed))
    assert (np.diff(changed.reshape(-1).astype(int)) >= 0).all()


def test_cut_out_covers_some_pictures_and_at_most_the_share_that_is_allowed() -> None:
    image = picture(5)
    changed = [
        (augment(image, NONE, Augmentation(cut_out=0.5), draw(seed))[0] != image).any(axis=2).mean()
        for seed in range(60)
    ]
    assert 10 < sum(share == 0 for share in changed) < 50
    assert max(changed) <= 0.25


def test_noise_has_the_deviation_that_is_allowed_at_most() -> None:
    image = np.full((64, 64), 128, np.uint8)
    spreads = [augment(image, NONE, Augmentation(noise=8), draw(seed))[0].std() for seed in range(40)]
    assert max(spreads) < 8.5 and min(spreads) < 2 and np.mean(spreads) == pytest.approx(4, abs=1)


@pytest.mark.parametrize(
    ("key", "value"), [("rotation", 181), ("cut_out", 0.6), ("noise", -1), ("scale", float("nan"))]
)
def test_changes_beyond_their_bounds_are_refused_where_they_are_read(key: str, value: Any) -> None:
    import msgspec

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({key: value}, Augmentation)
