"""Cohorts for the tests of this room, and what a right sum is."""

from __future__ import annotations

import secrets
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.secagg_cohort import Plants, Stand, config, plants
from edgekit.secagg import fixedpoint
from edgekit.secagg.policy import Policy
from edgekit.secagg.server import Result

SMALL = Policy(min_cohort=3)


@lru_cache
def fleet(devices: int) -> Plants:
    return plants(devices)


def new_stand(devices: int, policy: Policy = SMALL, **changes: Any) -> Stand:
    these = fleet(devices)
    return Stand(these, config(these.membership(), devices, **changes), policy=policy)


def some_updates(these: Plants, length: int = 10, seed: int = 1) -> dict[bytes, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {node: rng.uniform(-3, 3, length).astype(np.float32) for node in these.nodes}


def assert_exact(
    stand: Stand, result: Result, updates: dict[bytes, NDArray[np.float32]], weights: dict[bytes, int]
) -> None:
    """The unmasked words are those of the plain sum of the survivors, bit for bit."""
    assert not stand.server.encoding.stochastic, "else there is no one right answer"
    plain = np.zeros_like(result.words)
    for node in result.survivors:
        plain += fixedpoint.encode(updates[node], weights.get(node, 1), stand.server.encoding, secrets.token_bytes)
    np.testing.assert_array_equal(result.words, plain)
