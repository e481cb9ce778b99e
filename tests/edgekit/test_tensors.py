"""Tensors on the wire: exact round trips, and every lie in a header is refused before memory is taken for it."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.tensors import TensorError, load, places, save

LIMIT = 1 << 20
dtypes = st.sampled_from(["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"]).map(np.dtype)
arrays = dtypes.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


@given(st.dictionaries(st.text(min_size=1, max_size=20).filter(lambda n: n != "__metadata__"), arrays, max_size=4))
def test_tensors_come_back_bit_by_bit(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    back = load(save(tensors), LIMIT)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].shape == tensor.shape
        assert back[name].tobytes() == tensor.tobytes()


@given(st.dictionaries(st.text(min_size=1, max_size=20).filter(lambda n: n != "__metadata__"), arrays, max_size=6))
def test_the_bytes_are_those_that_the_library_writes(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    assert save(tensors) == safetensors.numpy.save(tensors)


def test_views_and_foreign_byte_order_are_written_by_value() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    back = load(save({"view": base.T[1:], "big": base.astype(">f4")}), LIMIT)
    np.testing.assert_array_equal(back["view"], base.T[1:])
    np.testing.assert_array_equal(back["big"], base)


@pytest.mark.parametrize("dtype", [object, complex, "U3", "M8[s]", "V4"])
def test_dtypes_that_have_no_place_are_refused(dtype: Any) -> None:
    with pytest.raises(TensorError, match="dtype"):
        save({"x": np.zeros(2, dtype=dtype)})


def forge(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        forge(b"not json"),
        forge(b"[" * 50_000),
        forge([]),
        forge({"x": 3}),
        forge({"x": {**GOOD, "dtype": "F128"}}, b"\0" * 8),
        forge({"x": {**GOOD, "dtype": ["F32"]}}, b"\0" * 8),
        forge({"x": {**GOOD, "shape": [2**60]}}, b"\0" * 8),
        forge({"x": {**GOOD, "shape": [-2]}}, b"\0" * 8),
        forge({"x": {**GOOD, "shape": [True, 2]}}, b"\0" * 8),
        forge({"x": {**GOOD, "shape": [1] * 9 + [2]}}, b"\0" * 8),
        forge({"x": {**GOOD, "shape": [3]}}, b"\0" * 8),
        forge({"x": {**GOOD, "data_offsets": [0, 2**40]}}, b"\0" * 8),
        forge({"x": {**GOOD, "data_offsets": [4, 12]}}, b"\0" * 12),
        forge({"x": GOOD, "y": GOOD}, b"\0" * 8),
        forge({"x": GOOD}, b"\0" * 9),
        forge({"x": GOOD}, b"\0" * 7),
    ],
)
def test_a_lying_header_is_refused(data: bytes) -> None:
    with pytest.raises(TensorError):
        load(data, LIMIT)


def test_more_bytes_than_allowed_are_refused() -> None:
    data = save({"x": np.zeros(100, dtype=np.uint8)})
    with pytest.raises(TensorError, match="are allowed"):
        load(data, len(data) - 1)
    assert load(data, len(data))["x"].size == 100


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_load_or_explain(data: bytes) -> None:
    with contextlib.suppress(TensorError):
        load(data, LIMIT)


@given(st.data())
def test_a_flipped_byte_is_read_or_refused_but_never_crashes(data: st.DataObject) -> None:
    raw = bytearray(save({"a": np.arange(3, dtype=np.int16), "b": np.ones((2, 2), dtype=np.float32)}))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(TensorError):
        load(bytes(raw), LIMIT)


@given(st.dictionaries(st.text(min_size=1, max_size=20).filter(lambda n: n != "__metadata__"), arrays, max_size=4))
def test_every_tensor_lies_where_its_place_says(tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    data = save(tensors)
    found = places(data)
    assert found.keys() == tensors.keys()
    for name, (start, size) in found.items():
        assert data[start : start + size] == tensors[name].tobytes()
