"""Updates as whole numbers: the sum never overflows, and is right within the code's width."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.secagg_cohort import MODEL, SESSION
from edgekit.secagg import fixedpoint, masks
from edgekit.secagg.errors import Refusal
from edgekit.secagg.fixedpoint import Encoding
from edgekit.secagg.messages import RoundConfig


def encoding(devices: int = 5, length: int = 8, **changes: Any) -> Encoding:
    values: dict[str, Any] = {
        "session": SESSION,
        "round": 1,
        "invited": devices,
        "colluders": 1,
        "parameters": length,
        "clip": 1e6,
        "limit": 4.0,
        "max_weight": 1,
        "bits": 32,
        "prg": "aes-256-ctr",
        "model": MODEL,
        "rosters": bytes(32),
    }
    return Encoding(RoundConfig(**{**values, **changes}))


def encode(update: NDArray[np.float32], weight: int, how: Encoding) -> NDArray[Any]:
    return fixedpoint.encode(update, weight, how, secrets.token_bytes)


@given(
    st.integers(3, 1024),
    st.sampled_from([16, 32]),
    st.integers(1, 12),
    st.floats(1e-9, 1e9),
    st.sampled_from([1e-30, 0.1, 3.999, 4.0, 1e6, 1e15]),
)
@settings(max_examples=200, deadline=None)
def test_the_largest_possible_sum_stays_within_the_words(
    devices: int, bits: int, weight: int, limit: float, size: float
) -> None:
    try:
        how = encoding(devices, 4, bits=bits, max_weight=weight, limit=limit, clip=1e9)
    except Refusal:
        assert (2 ** (bits - 1) - 1) // devices < weight or weight >= ((2**bits - 1) // devices + 1) ** 2
        return
    update = np.array([size, -size, limit, -limit], np.float32)
    words = encode(update, weight, how)
    signed = words[:4].view(f"<i{bits // 8}").astype(np.int64)
    assert np.abs(signed).max() * devices <= 2 ** (bits - 1) - 1
    assert all(int(word) * devices <= 2**bits - 1 for word in words[-2:]), "the weight's digits"
    assert int(words[-2]) + how.base * int(words[-1]) == weight


@given(st.integers(3, 20), st.sampled_from([16, 32]), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_decoded_sum_is_the_weighted_sum_within_one_code_a_device(
    devices: int, bits: int, most: int, seed: int
) -> None:
    how = encoding(devices, 50, bits=bits, max_weight=most)
    rng = np.random.default_rng(seed)
    updates = rng.uniform(-4, 4, (devices, 50)).astype(np.float32)
    weights = rng.integers(1, most + 1, devices)
    total = np.zeros(how.words, masks.dtype(bits))
    for update, weight in zip(updates, weights, strict=True):
        total += encode(update, int(weight), how)
    found, weight = fixedpoint.decode(total, devices, how)
    assert fixedpoint.check_sum(total, devices, how) == weight
    wanted = (updates.astype(np.float64) * weights[:, np.newaxis]).sum(axis=0)
    assert weight == weights.sum()
    assert np.abs(found - wanted).max() <= devices * 4.0 / how.unit + 1e-5 * np.abs(wanted).max()


def test_few_codes_are_rounded_at_random_and_right_on_average() -> None:
    how = encoding(100, 200_000, bits=16)
    assert how.stochastic
    value = 0.3 * 4.0 / how.unit  # plain rounding would make zero of it
    words = encode(np.full(200_000, value, np.float32), 1, how)
    mean = words[:-2].view("<i2").mean()
    assert mean == pytest.approx(0.3, abs=6 * (0.3 * 0.7 / 200_000) ** 0.5)
    assert not encoding(100, 8).stochastic


def test_random_rounding_at_the_limit_does_not_step_over_it() -> None:
    how = encoding(3, 50_000, bits=16, max_weight=43)  # 43 * unit is M itself: one more, three times, overflows
    assert how.stochastic
    assert 43 * how.unit == how.largest
    words = encode(np.full(50_000, 4.0, np.float32), 43, how)
    assert words[:-2].max() <= how.largest


def test_an_update_is_scaled_to_its_norm_and_its_values_are_cut() -> None:
    how = encoding(5, 4, clip=5.0)
    half = encode(np.array([6, 8, 0, 0], np.float32) / 2, 1, how)
    np.testing.assert_array_equal(encode(np.array([6, 8, 0, 0], np.float32), 1, how), half)
    cut = encode(np.array([100, -100, 1, 0], np.float32), 1, encoding(5, 4, limit=1.0))
    np.testing.assert_array_equal(cut[:4].view("<i4"), [2**24, -(2**24), 2**24, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_no_finite_number_is_refused(bad: float) -> None:
    update = np.zeros(8, np.float32)
    update[3] = bad
    with np.errstate(all="ignore"), pytest.raises(Refusal, match="finite"):
        encode(update, 1, encoding())


@pytest.mark.parametrize("update", [np.zeros(7, np.float32), np.zeros(8), np.zeros((2, 4), np.float32)])
def test_an_update_of_another_shape_or_type_is_refused(update: Any) -> None:
    with pytest.raises(Refusal, match="float32 of shape"):
        encode(update, 1, encoding())


@pytest.mark.parametrize("weight", [0, -1, 4])
def test_a_weight_beyond_the_configuration_is_refused_not_warned_about(weight: int) -> None:
    with pytest.raises(Refusal, match="weight"):
        encode(np.zeros(8, np.float32), weight, encoding(max_weight=3))


def test_a_configuration_without_room_for_values_is_refused() -> None:
    with pytest.raises(Refusal, match="no room"):
        encoding(1024, bits=16, max_weight=40)


def test_a_sum_that_its_devices_cannot_have_sent_is_refused() -> None:
    how = encoding(5, 4, clip=1.0)
    words = encode(np.array([1, 0, 0, 0], np.float32), 1, how)
    total = words * 5
    fixedpoint.decode(total, 5, how)
    with pytest.raises(Refusal, match="weights"):
        fixedpoint.decode(total, 4, how)
    total[0] = 2 * total[0]
    with pytest.raises(Refusal, match="longer"):
        fixedpoint.decode(total, 5, how)
    with pytest.raises(Refusal, match="words"):
        fixedpoint.decode(total[:-1], 5, how)
