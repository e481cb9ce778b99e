"""Features on the wire: what comes back, what is refused, and frames that somebody made up."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit.runtimes import TensorInfo
from edgekit.splitting import features
from edgekit.splitting.features import FeatureError, decode, encode

SHAPES = st.lists(st.integers(1, 7), max_size=4).map(tuple)


def expected(tensors: dict[str, NDArray[Any]]) -> list[TensorInfo]:
    return [TensorInfo(name, tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()]


def back(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return decode(encode(tensors), expected(tensors))


@st.composite
def floats(draw: st.DrawFn) -> NDArray[np.float32]:
    """float32 arrays of every size of value, with values in common, at zero and at the ends of what float32 holds."""
    shape = draw(SHAPES)
    seed = draw(st.integers(0, 2**32 - 1))
    scale = draw(st.sampled_from([0.0, 1e-45, 1e-38, 1e-6, 1.0, 1e6, 1e37]))
    offset = draw(st.sampled_from([0.0, 1e-40, -1.0, 1e5, -1e37]))
    values = np.random.default_rng(seed).normal(0, 1, shape) * scale + offset
    if draw(st.booleans()):
        values = np.maximum(values, 0)
    return np.asarray(values, np.float32)


@given(floats())
def test_a_float_comes_back_within_half_a_step(values: NDArray[np.float32]) -> None:
    (found,) = back({"t": values}).values()
    assert found.dtype == np.float32 and found.shape == values.shape
    low, high = float(values.min()), float(values.max())
    step = (high - low) / 255
    rounding = 2 * max(np.spacing(np.float32(abs(low))), np.spacing(np.float32(abs(high))))
    assert np.abs(found.astype(float) - values.astype(float)).max() <= step / 2 * 1.0001 + rounding


@given(st.sampled_from(sorted(features.DTYPES)), SHAPES, st.integers(0, 2**32 - 1))
def test_every_type_comes_back_as_itself_and_integers_unchanged(dtype: str, shape: tuple[int, ...], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 120, shape).astype(dtype)
    found = back({"t": values, "u": values[...]})["u"]
    assert found.dtype == values.dtype and found.shape == shape
    if values.dtype.kind == "f":
        rounding = float(np.spacing(values.dtype.type(120)))
        assert np.abs(found.astype(float) - values.astype(float)).max() <= 120 / 510 + rounding
    else:
        assert np.array_equal(found, values)


def test_integers_of_all_values_and_byte_orders_come_back_unchanged() -> None:
    tensors = {
        "least": np.array([[-(2**63), 2**63 - 1]], np.int64),
        "bytes": np.arange(-128, 128, dtype=np.int8).reshape(16, 16),
        "big": np.arange(6, dtype=">i4"),
        "turned": np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(2, 0, 1),
    }
    for name, found in decode(encode(tensors), expected(tensors)).items():
        assert np.array_equal(found, tensors[name])


def test_as_many_tensors_of_as_long_names_as_a_frame_holds_come_back() -> None:
    tensors = {f"{index:02}" + "é" * 510: np.full((1,) * 8, index, np.float32) for index in range(16)}
    assert back(tensors) == tensors


def test_zeros_after_an_activation_stay_zeros() -> None:
    values = np.maximum(np.random.default_rng(1).normal(0, 1, (1, 8, 9, 9)), 0).astype(np.float32)
    (found,) = back({"t": values}).values()
    assert np.array_equal(found == 0, values < values.max() / 510)


def test_decoded_arrays_own_their_memory_and_can_be_written() -> None:
    for values in (np.ones((2, 2), np.float32), np.ones((2, 2), np.int64), np.ones((2, 2), np.uint8)):
        (found,) = back({"t": values}).values()
        found[0, 0] = 0


def test_smooth_maps_and_sparse_maps_pack_well() -> None:
    line = np.linspace(0, 3, 64)
    smooth = (np.sin(line)[:, None] * np.cos(2 * line)[None, :] * np.ones((16, 1, 1))).astype(np.float32)
    assert len(encode({"t": smooth})) < 0.5 * smooth.size
    noise = np.random.default_rng(2).normal(-1, 1, (16, 64, 64)).astype(np.float32)
    assert len(encode({"t": np.maximum(noise, 0)})) < 0.35 * noise.size
    assert len(encode({"t": noise})) < noise.size + 100


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_are_refused(bad: float, dtype: type) -> None:
    values = np.zeros((2, 3), dtype)
    values[1, 2] = bad
    with pytest.raises(FeatureError, match='features "t" hold NaN or infinity'):
        encode({"t": values})


def test_what_a_frame_cannot_hold_is_refused() -> None:
    most = np.finfo(np.float32).max
    one = np.zeros(1, np.float32)
    for tensors, complaint in (
        ({}, "0 tensors"),
        ({str(index): one for index in range(17)}, "17 tensors"),
        ({"t": np.array(["text"])}, "cannot be sent"),
        ({"t": np.zeros(2, np.complex64)}, "cannot be sent"),
        ({"t": np.zeros((2, 0), np.float32)}, "at least one value"),
        ({"": one}, "1 to 512 letters"),
        ({"n" * 513: one}, "1 to 512 letters"),
        ({"t": np.zeros((1,) * 9, np.float32)}, "at most 8 dimensions"),
        ({"t": np.array([most, -most], np.float32)}, "too wide"),
        ({"t": np.array([1e300])}, "more than a float32 can hold"),
        ({"t": np.broadcast_to(one, (2**14, 2**15))}, "more than 268435456 bytes"),
    ):
        with pytest.raises(FeatureError, match=complaint):
            encode(tensors)


TENSORS = {"a": np.arange(12, dtype=np.float32).reshape(1, 3, 4), "b": np.arange(3, dtype=np.int64)}
FRAME = encode(TENSORS)
TAIL = expected(TENSORS)


def test_a_frame_for_another_tail_is_refused() -> None:
    a, b = TAIL
    for tail in (
        [a],
        [a, b, b],
        [b, a],
        [TensorInfo("c", a.shape, a.dtype), b],
        [TensorInfo("a", (1, 4, 3), a.dtype), b],
        [TensorInfo("a", a.shape, "float64"), b],
    ):
        with pytest.raises(FeatureError, match="the tail expects"):
            decode(FRAME, tail)
    for tail in ([TensorInfo("a", (None, 3, 4), "float32"), b], [TensorInfo("a", (1,), "object"), b]):
        with pytest.raises(FeatureError, match="a plain type and a fixed shape belong there"):
            decode(FRAME, tail)
    with pytest.raises(FeatureError, match="the tail expects more than"):
        decode(FRAME, [TensorInfo("a", (1 << 20, 1 << 20), "float32")])


def made_up(*entries: list[Any], data: bytes = bytes(36), version: int = 1, length: int | None = None) -> bytes:
    header = msgspec.msgpack.encode(entries)
    start = struct.pack("<3sBI", b"EKF", version, len(header) if length is None else length)
    return start + header + zlib.compress(data)


A, B = ["a", "float32", [1, 3, 4], 0.0, 1.0, False], ["b", "int64", [3], 0.0, 0.0, False]


def test_a_made_up_frame_is_read_or_refused_with_the_reason() -> None:
    decode(made_up(A, B), TAIL)
    nan, inf = float("nan"), float("inf")
    for frame, complaint in (
        (b"", "too few"),
        (b"PK\3\4" + bytes(40), "no frame of features"),
        (made_up(A, B, version=2), "version 2; this release reads version 1"),
        (made_up(A, B, length=2**32 - 1), "header of 4294967295 bytes"),
        (made_up(A, B, length=10), "header of the frame cannot be read"),
        (made_up(A, [*B, 1]), "header of the frame cannot be read"),
        (made_up([*A[:3], "0", 1.0, False], B), "header of the frame cannot be read"),
        (made_up([*A[:3], nan, 1.0, False], B), "not one of finite values"),
        (made_up([*A[:3], 0.0, inf, False], B), "not one of finite values"),
        (made_up([*A[:3], 0.0, -1.0, False], B), "not one of finite values"),
        (made_up([*A[:3], 3e38, 1e37, False], B), "not one of finite values"),
        (made_up(A, [*B[:5], True]), "cannot be differences of rows"),
        (made_up(A, B, data=bytes(35)), "do not unpack to the 36 bytes"),
        (made_up(A, B, data=bytes(37)), "do not unpack to the 36 bytes"),
        (made_up(A, B)[:-3], "do not unpack to the 36 bytes"),
        (made_up(A, B) + b"more", "do not unpack to the 36 bytes"),
        (made_up(A, B)[:-1] + b"\0", "damaged"),
        (FRAME + bytes(70_000), "more than features of 36 bytes can need"),
    ):
        with pytest.raises(FeatureError, match=complaint):
            decode(frame, TAIL)


def test_a_frame_that_unpacks_to_far_more_than_the_tail_expects_takes_no_memory() -> None:
    bomb = made_up(A, B, data=bytes(10 << 20))
    tracemalloc.start()
    with pytest.raises(FeatureError, match="do not unpack"):
        decode(bomb, TAIL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@given(st.binary(max_size=200))
def test_random_bytes_raise_one_error_only(data: bytes) -> None:
    for frame in (data, FRAME[:8] + data, struct.pack("<3sBI", b"EKF", 1, len(data)) + data + zlib.compress(bytes(36))):
        with pytest.raises(FeatureError):
            decode(frame, TAIL)


@given(st.data())
def test_a_damaged_frame_is_refused_or_gives_finite_values(data: st.DataObject) -> None:
    frame = bytearray(FRAME)
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = decode(bytes(frame[: data.draw(st.integers(0, len(frame)))]), TAIL)
    except FeatureError:
        return
    assert all(np.isfinite(one).all() for one in tensors.values())
    assert {name: one.shape for name, one in tensors.items()} == {"a": (1, 3, 4), "b": (3,)}
