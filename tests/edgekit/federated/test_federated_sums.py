"""Sums of whole numbers are exact; a round with other numbers than the strategy's is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from federated_support import round_config, summed
from hypothesis import given
from hypothesis import strategies as st

from edgekit.federated.errors import FederatedError
from edgekit.federated.strategy import Contribution
from edgekit.federated.sums import Room, Sum, clipped, to_values, value_numbers, whole_numbers
from edgekit.secagg import fixedpoint


@given(st.integers(3, 200), st.sampled_from([32, 16]), st.integers(0, 2**32 - 1))
def test_a_sum_of_whole_numbers_is_exact(invited: int, bits: int, seed: int) -> None:
    room = Room(invited=invited, bits=bits)  # type: ignore[arg-type]
    numbers = whole_numbers(6, room)
    rng = np.random.default_rng(seed)
    codes = [rng.integers(-room.most, room.most, 6, endpoint=True) for _ in range(min(invited, 8))]
    codes[0][0], codes[0][1] = room.most, -room.most
    total = summed([Contribution(to_values(one, room), 1) for one in codes], numbers, bits)
    np.testing.assert_array_equal(total.codes, sum(codes))


def test_a_whole_number_beyond_the_room_is_refused_and_never_cut() -> None:
    room = Room(invited=32, bits=16)
    with pytest.raises(FederatedError, match=f"room for {room.most} a device"):
        to_values(np.array([room.most + 1]), room)


def test_a_round_with_other_numbers_is_refused_by_the_name_of_the_number() -> None:
    numbers = whole_numbers(4, Room(invited=8))
    config = round_config(numbers, 8)
    numbers.check(config)
    for name, value in {"parameters": 5, "clip": 9.0, "limit": 2.0, "max_weight": 3, "invited": 9, "bits": 16}.items():
        with pytest.raises(FederatedError, match=name):
            numbers.check(msgspec.structs.replace(config, **{name: value}))


def test_an_update_is_clipped_once_and_not_again_by_the_code() -> None:
    numbers = value_numbers(1000, 1.0, 1.0, 1)
    vector = clipped(np.full(1000, 5, np.float32), 1.0)
    total = summed([Contribution(vector, 1)] * 3, numbers)
    np.testing.assert_allclose(total.mean, vector, rtol=0, atol=total.step)


def test_words_that_can_be_no_sum_of_so_many_devices_are_refused() -> None:
    config = round_config(value_numbers(4, 1.0, 1.0, 1), 3)
    words = np.zeros(fixedpoint.Encoding(config).words, "<u4")
    with pytest.raises(FederatedError, match="weights of 3 devices"):
        Sum.of_words(words, 3, config)


def test_a_vector_of_nan_is_not_clipped_but_refused() -> None:
    with pytest.raises(FederatedError, match="diverged"):
        clipped(np.array([np.nan], np.float32), 1.0)
