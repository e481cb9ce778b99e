"""Pre-processing against its definition: value = (pixel - mean) * scale, whatever the tensor stores."""

from __future__ import annotations

import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.packages import InputSpec
from edgekit.runtimes import ModelError, TensorInfo
from edgekit.vision.preprocess import check_input, fit, prepare
from edgekit.vision.resample import antialiased

RNG = np.random.default_rng(7)
IMAGE = RNG.integers(0, 256, (6, 8, 3), np.uint8)


def spec(**changes: Any) -> InputSpec:
    return InputSpec(**{"width": 8, "height": 6, **changes})


def tensor(*shape: int | None, dtype: str = "float32", quantisation: tuple[float, int] | None = None) -> TensorInfo:
    return TensorInfo("x", shape, dtype, quantisation)


def test_float_planes_follow_the_formula_per_channel() -> None:
    mean, scale = [10.0, 20.0, 30.0], [0.5, 0.25, 0.125]
    batch = prepare(IMAGE, spec(mean=mean, scale=scale), tensor(1, 3, 6, 8))
    assert batch.dtype == np.float32
    assert batch.flags.c_contiguous
    np.testing.assert_allclose(batch, ((IMAGE - np.array(mean)) * scale).transpose(2, 0, 1)[np.newaxis], rtol=1e-6)


def test_packed_layout_and_one_value_for_all_channels() -> None:
    batch = prepare(IMAGE, spec(layout="nhwc", mean=[127.5], scale=[1 / 127.5]), tensor(None, None, None, 3))
    np.testing.assert_allclose(batch, ((IMAGE - 127.5) / 127.5)[np.newaxis], atol=1e-6)


def test_grey_has_one_channel() -> None:
    grey = IMAGE[:, :, 0].copy()
    assert prepare(grey, spec(colour="grey"), tensor(1, 1, 6, 8)).shape == (1, 1, 6, 8)
    packed = prepare(grey, spec(colour="grey", layout="nhwc"), tensor(1, 6, 8, 1))
    np.testing.assert_array_equal(packed[0, :, :, 0], grey)


def test_the_tensor_decides_the_layout_when_only_one_fits() -> None:
    planar = prepare(IMAGE, spec(layout="nhwc"), tensor(1, 3, 6, 8))
    np.testing.assert_array_equal(planar[0].transpose(1, 2, 0), IMAGE)
    packed = prepare(IMAGE, spec(layout="nchw"), tensor(1, 6, 8, 3))
    np.testing.assert_array_equal(packed[0], IMAGE)
    free = tensor(None, None, None, None)
    assert prepare(IMAGE, spec(layout="nhwc"), free).shape == (1, 6, 8, 3)
    assert prepare(IMAGE, spec(layout="nchw"), free).shape == (1, 3, 6, 8)


@given(
    scale=st.floats(1e-3, 0.1),
    zero_point=st.integers(-128, 127),
    mean=st.floats(0, 255),
    factor=st.floats(1e-3, 1),
    signed=st.booleans(),
)
def test_quantised_inputs_are_rounded_and_clipped_real_values(
    scale: float, zero_point: int, mean: float, factor: float, signed: bool
) -> None:
    dtype, low, high = ("int8", -128, 127) if signed else ("uint8", 0, 255)
    zero = zero_point if signed else zero_point + 128
    info = tensor(1, 3, 6, 8, dtype=dtype, quantisation=(scale, zero))
    batch = prepare(IMAGE, spec(mean=[mean], scale=[factor]), info)
    real = (IMAGE.transpose(2, 0, 1)[np.newaxis] - mean) * factor
    assert batch.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(batch, np.clip(np.rint(real / scale + zero), low, high))


def test_whole_numbers_without_a_scale_take_the_value_itself() -> None:
    raw = prepare(IMAGE, spec(dtype="uint8"), tensor(1, 3, 6, 8, dtype="uint8"))
    np.testing.assert_array_equal(raw[0].transpose(1, 2, 0), IMAGE)
    shifted = prepare(IMAGE, spec(dtype="int8", mean=[128.0]), tensor(1, 3, 6, 8, dtype="int8"))
    np.testing.assert_array_equal(shifted[0].transpose(1, 2, 0), IMAGE.astype(int) - 128)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (tensor(1, 3, 7, 8), 'says the input is 1x3x6x8, but the model\'s "x" is 1x3x7x8'),
        (tensor(3, 6, 8), "is 3x6x8"),
        (tensor(2, 3, 6, 8), "is 2x3x6x8"),
        (tensor(1, 3, 6, 8, dtype="int64"), "is int64; pictures go to"),
        (tensor(1, 3, 6, 8, dtype="uint8"), "carries no quantisation scale"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_when_loaded(info: TensorInfo, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_input(spec(), info)


@pytest.mark.parametrize(
    "image",
    [IMAGE[:, :, 0], IMAGE[:, :, :2], IMAGE.astype(np.float32), IMAGE[:0], np.zeros((6, 8, 4), np.uint8)],
)
def test_arrays_that_are_not_the_described_picture_are_refused(image: NDArray[Any]) -> None:
    with pytest.raises(ModelError, match="the picture is"):
        prepare(image, spec(), tensor(1, 3, 6, 8))


def test_stretch_ignores_the_aspect_ratio_and_area_averages() -> None:
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 4:] = 100
    fitted = fit(image, spec(width=2, height=4, interpolation="area"))
    np.testing.assert_array_equal(fitted[:, :, 0], [[0, 100]] * 4)


def test_crop_takes_the_centre() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    np.testing.assert_array_equal(fit(image, spec(width=5, height=5, resize="crop")), np.full((5, 5, 3), 200))


def test_letterbox_keeps_everything_on_grey() -> None:
    image = np.full((10, 20, 3), 255, np.uint8)
    fitted = fit(image, spec(width=10, height=10, resize="letterbox"))
    column = fitted[:, 5, 0].tolist()
    assert column == [114, 114, 255, 255, 255, 255, 255, 114, 114, 114]


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from(["stretch", "crop", "letterbox"]),
    st.sampled_from(["linear", "area", "antialias"]),
)
def test_any_size_fits(width: int, height: int, resize: str, interpolation: str) -> None:
    image = np.full((height, width), 50, np.uint8)
    fitted = fit(image, spec(colour="grey", resize=resize, interpolation=interpolation))
    assert fitted.shape == (6, 8)
    assert set(np.unique(fitted)) <= {50, 114}


def test_a_picture_of_very_long_rows_is_resized_in_bounded_memory() -> None:
    image = np.zeros((2, 1_000_000, 3), np.uint8)
    image[:, 500_000:] = 200
    tracemalloc.start()
    small = antialiased(image, 64, 128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert small.shape == (128, 64, 3)
    assert (small[:, :31] == 0).all() and (small[:, 33:] == 200).all()
    assert peak < 100 << 20, "128 x 1,000,000 x 3 floats are 1.5 GB"


def test_antialiasing_is_a_triangle_as_wide_as_the_shrinking() -> None:
    # Halving: the weights of the four nearest pixels are 1/8, 3/8, 3/8, 1/8 (a triangle of reach 2 at 0.5 and 1.5).
    line = np.array([[0, 0, 0, 80, 0, 0, 0, 0]], np.uint8)
    assert antialiased(line, 4, 1).tolist() == [[0, 30, 10, 0]]
    # Enlarging: plain linear interpolation, which OpenCV has too.
    image = RNG.integers(0, 256, (5, 7, 3), np.uint8)
    linear = cv2.resize(image, (14, 10), interpolation=cv2.INTER_LINEAR)
    assert np.abs(antialiased(image, 14, 10).astype(int) - linear).max() <= 1
    np.testing.assert_array_equal(antialiased(image, 7, 5), image)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_antialiasing_keeps_a_flat_picture_flat(height: int, width: int, to_height: int, to_width: int) -> None:
    flat = np.full((height, width, 3), 77, np.uint8)
    np.testing.assert_array_equal(antialiased(flat, to_width, to_height), np.full((to_height, to_width, 3), 77))
