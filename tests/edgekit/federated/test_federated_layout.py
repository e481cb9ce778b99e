"""Named tensors as one vector: the same order everywhere, and nothing personal in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.federated.errors import FederatedError
from edgekit.federated.layout import Layout

SHAPES = {"conv.weight": (2, 3), "bn.scale": (3,), "bn.mean": (3,), "head.weight": (4, 2), "scalar": ()}

shapes = st.dictionaries(
    st.text(min_size=1, max_size=8), st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=6
)


@given(shapes, st.integers(0, 2**32 - 1))
def test_tensors_come_back_as_they_went_in(these: dict[str, tuple[int, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = {name: rng.standard_normal(shape).astype(np.float32).reshape(shape) for name, shape in these.items()}
    layout = Layout(these)
    back = layout.unflatten(layout.flatten(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_the_order_in_which_tensors_are_named_changes_neither_vector_nor_digest() -> None:
    turned = dict(reversed(SHAPES.items()))
    tensors = {name: np.full(shape, i, np.float32) for i, (name, shape) in enumerate(SHAPES.items())}
    assert Layout(turned).digest == Layout(SHAPES).digest
    np.testing.assert_array_equal(Layout(turned).flatten(tensors), Layout(SHAPES).flatten(tensors))


@pytest.mark.parametrize("change", [{"bn.mean": (4,)}, {"more": (1,)}, {"conv.weight": (3, 2)}])
def test_another_shape_or_tensor_has_another_digest(change: dict[str, tuple[int, ...]]) -> None:
    assert Layout(SHAPES | change).digest != Layout(SHAPES).digest


def test_personal_tensors_are_in_no_vector_and_may_differ_between_devices() -> None:
    here = Layout(SHAPES, ["bn.*", "head.*"])
    there = Layout(SHAPES | {"head.weight": (9, 2)}, ["bn.*", "head.*"])
    assert here.size == 7
    assert here.digest == there.digest
    assert here.personal == ("bn.mean", "bn.scale", "head.weight")
    assert set(here.unflatten(np.zeros(7, np.float32))) == {"conv.weight", "scalar"}


def test_a_pattern_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(FederatedError, match=r"batchnorm\.\*"):
        Layout(SHAPES, ["batchnorm.*"])


def test_a_model_of_which_nothing_is_shared_is_an_error() -> None:
    with pytest.raises(FederatedError, match="0 shared values"):
        Layout(SHAPES, ["*"])


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (None, "missing"),
        (np.zeros((3, 2), np.float32), r"float32 \(2, 3\)"),
        (np.zeros((2, 3)), "float64"),
        (np.full((2, 3), np.nan, np.float32), "NaN"),
        (np.full((2, 3), np.inf, np.float32), "infinite"),
    ],
)
def test_what_is_not_that_tensor_is_refused_by_name(tensor: object, text: str) -> None:
    layout = Layout({"conv.weight": (2, 3)})
    with pytest.raises(FederatedError, match=text):
        layout.flatten({"conv.weight": tensor} if tensor is not None else {})  # type: ignore[dict-item]
