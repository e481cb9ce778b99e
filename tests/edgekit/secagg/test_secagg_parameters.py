"""Quorum and graph parameters: the bounds hold where the truth can be computed or drawn."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.secagg import parameters
from edgekit.secagg.graph import neighbours
from edgekit.secagg.parameters import GraphParameters, choose, failure, privacy_bits, quorum, smallest_cut


@given(st.integers(3, 1024), st.data())
def test_two_quorums_share_an_honest_device(count: int, data: st.DataObject) -> None:
    colluders = data.draw(st.integers(0, count - 2))
    q = quorum(count, colluders)
    assert 2 * q - count > colluders, "two sets of q overlap in more than the colluders"
    assert 2 * (q - 1) - count <= colluders, "and one less does not suffice"
    assert q - colluders >= 2, "at least two honest updates are in every sum"


def test_the_quorums_of_the_documentation() -> None:
    assert [quorum(n, n // 3) for n in (3, 4, 5, 6, 8, 32, 50, 100, 128)] == [3, 3, 4, 5, 6, 22, 34, 67, 86]
    assert quorum(1000, 100) == 551


def test_small_cohorts_get_the_complete_graph() -> None:
    assert choose(128, 42, 0.3, 128) == GraphParameters(127, 86)
    assert privacy_bits(128, 42, GraphParameters(127, 86)) == math.inf
    assert smallest_cut(128, 42, GraphParameters(127, 86)) == 1


@pytest.mark.parametrize(
    ("count", "colluders", "dropout", "graph"),
    [
        (200, 20, 0.3, GraphParameters(79, 24)),
        (500, 50, 0.3, GraphParameters(139, 51)),
        (1000, 100, 0.3, GraphParameters(179, 69)),
        (1000, 100, 0.1, GraphParameters(130, 61)),
    ],
)
def test_the_graphs_of_the_documentation(count: int, colluders: int, dropout: float, graph: GraphParameters) -> None:
    assert choose(count, colluders, dropout, 128) == graph
    assert privacy_bits(count, colluders, graph) >= 80
    assert failure(count, graph.degree, graph.threshold, dropout) < 2**-20


def test_a_larger_threshold_or_fewer_colluders_never_hurt_privacy() -> None:
    base = privacy_bits(300, 30, GraphParameters(100, 25))
    assert privacy_bits(300, 30, GraphParameters(100, 26)) > base
    assert privacy_bits(300, 25, GraphParameters(100, 25)) > base


def cut(seed: bytes, count: int, colluders: int, graph: GraphParameters) -> bool:
    """Whether some choice of survivors gives a cheating server two sums: tried one by one, as lemma 4 defines it."""
    around = [set(one) for one in neighbours(seed, count, graph.degree)]
    bad, honest = set(range(colluders)), range(colluders, count)
    least = quorum(count, colluders) - colluders
    for size in range(1, len(honest) // 2 + 1):
        for part in map(set, combinations(honest, size)):
            if any(len(around[u] & (bad | part)) < graph.threshold - 1 for u in part):
                continue
            joined = set().union(*(around[u] for u in part))
            apart = [v for v in honest if v not in part and v not in joined]
            if len(apart) >= max(least - size, size):
                return True
    return False


@pytest.mark.parametrize(
    ("count", "colluders", "graph"),
    [(12, 2, GraphParameters(6, 4)), (13, 3, GraphParameters(7, 5)), (12, 1, GraphParameters(5, 3))],
)
def test_the_bound_on_cut_graphs_is_above_what_random_graphs_do(
    count: int, colluders: int, graph: GraphParameters
) -> None:
    chance = random.Random(4)
    tries = 150
    hits = sum(cut(chance.randbytes(32), count, colluders, graph) for _ in range(tries))
    assert hits / tries <= min(1.0, 2 ** -privacy_bits(count, colluders, graph)) + 1e-9
    assert cut(bytes(32), count, colluders, GraphParameters(2, 2)), "the search finds cuts where there are any"


def test_the_failure_bound_is_above_what_random_dropouts_do() -> None:
    chance = random.Random(5)
    count, degree, threshold = 60, 24, 11
    failed = 0
    tries = 300
    for _ in range(tries):
        around = neighbours(chance.randbytes(32), count, degree)
        left = set(chance.sample(range(count), 42))
        failed += any(len(left.intersection(one)) < threshold for one in around)
    bound = failure(count, degree, threshold, 0.3)
    assert 0 < failed / tries <= bound + 4 * math.sqrt(bound / tries)


def test_the_tail_of_a_part_of_one_is_the_binomial_tail() -> None:
    graph = GraphParameters(30, 12)
    p = 30 / 99
    exact = sum(math.comb(20, i) * p**i * (1 - p) ** (20 - i) for i in range(11, 21))
    assert parameters._ln_fed(20, graph, 100, 1) == pytest.approx(math.log(exact), rel=1e-9)
