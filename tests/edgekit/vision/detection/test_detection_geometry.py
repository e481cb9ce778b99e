"""Where a box of the input lies in the picture: checked by preparing pictures and looking where a rectangle went."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.packages import InputSpec
from edgekit.vision.detection.geometry import placement, reduction
from edgekit.vision.images import decode, encode_jpeg
from edgekit.vision.preprocess import cropped, fit

fractions = st.tuples(st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.6, 1), st.floats(0.6, 1)).map(list)


@settings(max_examples=200)
@given(
    st.sampled_from(["stretch", "crop", "letterbox"]),
    st.tuples(st.integers(20, 120), st.integers(20, 120)),
    st.tuples(st.integers(20, 120), st.integers(20, 120)),
    st.one_of(st.none(), fractions),
    st.tuples(st.floats(0.1, 0.4), st.floats(0.1, 0.4), st.floats(0.6, 0.9), st.floats(0.6, 0.9)),
)
def test_a_rectangle_of_the_input_maps_back_to_where_it_is_in_the_picture(
    resize: Any, model: tuple[int, int], size: tuple[int, int], crop: list[float] | None, place: Any
) -> None:
    width, height = size
    spec = InputSpec(width=model[0], height=model[1], colour="grey", resize=resize, interpolation="linear", crop=crop)
    # The picture's own coordinates as grey levels: what a pixel of the input shows tells where it came from.
    for axis, length in ((0, width), (1, height)):
        ramp = np.arange(length, dtype=np.uint8)
        picture = np.tile(ramp, (height, 1)) if axis == 0 else np.tile(ramp[:, None], (1, width))
        shown = fit(cropped(np.ascontiguousarray(picture), spec), spec)
        x, y = int(place[axis] * model[0]), int(place[1 - axis] * model[1])
        mapped = placement(spec, width, height).to_picture(np.array([[x, y, x + 1, y + 1]], np.float32))[0]
        inside = placement(spec, width, height)
        back = inside.to_input(mapped[None])[0]
        if np.abs(back - [x, y, x + 1, y + 1]).max() > 1e-3:
            continue  # the pixel belongs to the border that letterbox adds
        middle = (mapped[axis] + mapped[2 + axis]) / 2 - 0.5
        assert float(shown[y, x]) == pytest.approx(middle, abs=1.01)


def test_boxes_are_cut_off_at_what_the_model_saw() -> None:
    spec = InputSpec(width=100, height=100, resize="crop")
    found = placement(spec, 300, 200).to_picture(np.array([[-50, -50, 150, 150], [0, 0, 100, 100]], np.float32))
    assert found.tolist() == [[50, 0, 250, 200], [50, 0, 250, 200]]
    spec = InputSpec(width=100, height=100, resize="letterbox")
    found = placement(spec, 200, 100).to_picture(np.array([[0, 0, 100, 100], [10, 25, 20, 75]], np.float32))
    assert found.tolist() == [[0, 0, 200, 100], [20, 0, 40, 100]]
    spec = InputSpec(width=100, height=100, crop=[0.5, 0.0, 1.0, 0.5])
    found = placement(spec, 400, 200).to_picture(np.array([[10, 10, 20, 200]], np.float32))
    assert found.tolist() == [[220, 10, 240, 100]]


@pytest.mark.parametrize("width", [640, 641, 647, 633])
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_the_factor_of_a_reduced_decode_is_recognised(width: int, factor: int) -> None:
    data = encode_jpeg(np.zeros((480, width, 3), np.uint8))
    decoded = decode(data, reduce_to=(width // factor, 480 // factor))
    assert reduction(width, decoded.shape[1]) == factor
    assert reduction(480, decoded.shape[0]) == factor
