"""Quorum, threshold and degree, with the tails that they are chosen by. The derivations are in docs/secagg.md.

n devices, of which c may work together with cloudd. A quorum of q > (n + c) / 2 survivors signs the survivor set, so at
most one set can be certified. In the complete graph t = q. In the random graph mean degree k and threshold t are such
that the probability that the graph lets anybody learn more than one sum is below 2^-80 for each roll that is tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

SPARSE_BITS = 80
"""40 for the adversary's luck, 40 for the 2^40 rolls that it may try before it shows one."""
FAILURE = 2.0**-20
_LN2 = math.log(2)
_NEGLIGIBLE = -200 * _LN2


@dataclass(frozen=True)
class GraphParameters:
    """The graph that cloudd proposes for a roll: mean number of neighbours, and shares that give a secret back."""

    degree: int
    threshold: int


def quorum(count: int, colluders: int) -> int:
    """The smallest q with 2q > n + c."""
    return (count + colluders) // 2 + 1


def complete(count: int, colluders: int) -> GraphParameters:
    """Everybody with everybody; threshold = quorum."""
    return GraphParameters(count - 1, quorum(count, colluders))


@lru_cache(maxsize=64)
def choose(count: int, colluders: int, dropout: float, complete_to: int, bits: float = SPARSE_BITS) -> GraphParameters:
    """The graph with the fewest neighbours that has `bits` of privacy and survives a share `dropout` of the devices.

    Complete up to `complete_to` devices, and beyond where no random graph with fewer neighbours does both. Survives
    means: a round fails with probability below 2^-20 when the devices that vanish are random.
    """
    best = complete(count, colluders)
    if count <= complete_to:
        return best
    low, high = 2, count - 2
    while low <= high:
        degree = (low + high) // 2
        threshold = smallest_threshold(count, colluders, degree, bits)
        if threshold is not None and failure(count, degree, threshold, dropout) < FAILURE:
            best, high = GraphParameters(degree, threshold), degree - 1
        else:
            low = degree + 1
    return best


def smallest_threshold(count: int, colluders: int, degree: int, bits: float) -> int | None:
    """The smallest threshold with `bits` of privacy and a hair more (another machine's logarithms differ); or None."""
    low, high = 2, degree + 1
    while low < high:
        middle = (low + high) // 2
        if privacy_bits(count, colluders, GraphParameters(degree, middle)) < bits + 1e-3:
            low = middle + 1
        else:
            high = middle
    return low if low <= degree else None


def failure(count: int, degree: int, threshold: int, dropout: float) -> float:
    """Bound on the probability that some device has fewer than `threshold` neighbours left after random dropouts."""
    left = math.floor((1 - dropout) * (count - 1))
    return min(1.0, count * math.exp(_ln_sum([_ln_binomial(left, i, degree / (count - 1)) for i in range(threshold)])))


@lru_cache(maxsize=4096)
def privacy_bits(count: int, colluders: int, graph: GraphParameters) -> float:
    """-log2 of the bound on the probability that a random graph lets a survivor set be cut; infinity if complete.

    The sum over the sizes of the smaller part, docs/secagg.md, lemma 4.
    """
    if graph.degree >= count - 1:
        return math.inf
    terms = []
    for part in range(1, (count - colluders) // 2 + 1):
        term = _ln_apart(count, colluders, graph.degree, part)
        if term > _NEGLIGIBLE:  # else the rest of the lemma is not needed to make it small
            choices = _ln_choose(count - colluders, part)
            term = choices + _ln_fed(colluders, graph, count, part) + min(0.0, term - choices)
        terms.append(term)
    return -_ln_sum(terms) / _LN2


def smallest_cut(count: int, colluders: int, graph: GraphParameters) -> int:
    """The smallest s such that no part of s or more honest survivors can be cut off, but with probability 2^-80.

    So a revealed sum lacks fewer than s of the honest survivors. 1 for the complete graph.
    """
    if graph.degree >= count - 1:
        return 1
    tail: list[float] = []
    for part in range((count - colluders) // 2, 0, -1):
        tail.append(_ln_apart(count, colluders, graph.degree, part))
        if _ln_sum(tail) > -SPARSE_BITS * _LN2:
            return part + 1
    return 1


def _ln_apart(count: int, colluders: int, degree: int, part: int) -> float:
    """ln of the expected number of ways to choose a part and the rest of the honest survivors with no edge between."""
    honest = count - colluders
    rest = max(quorum(count, colluders) - colluders - part, part)
    ways = _ln_choose(honest, part) + _ln_choose(honest - part, rest)
    return ways + part * rest * math.log1p(-degree / (count - 1))


def _ln_fed(colluders: int, graph: GraphParameters, count: int, part: int) -> float:
    """ln of a bound on: each device of a given part has threshold - 1 neighbours among the colluders and the part.

    Exact for a part of one. Else Chernoff on the number of edges to colluders plus twice that within the part.
    """
    p, needed = graph.degree / (count - 1), graph.threshold - 1
    if part == 1:
        if needed > colluders:
            return -math.inf
        return _ln_sum([_ln_binomial(colluders, i, p) for i in range(needed, colluders + 1)])
    outside, inside, hits = colluders * part, part * (part - 1) / 2, part * needed

    def value(x: float) -> float:
        e = math.exp(x)
        return outside * math.log1p(p * (e - 1)) + inside * math.log1p(p * (e * e - 1)) - x * hits

    low, high = 0.0, 12.0  # any x >= 0 gives a bound; the value is convex in x
    for _ in range(40):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if value(a) < value(b) else (a, high)
    return min(0.0, value((low + high) / 2))


def _ln_binomial(n: int, k: int, p: float) -> float:
    if k > n:
        return -math.inf
    return _ln_choose(n, k) + k * math.log(p) + (n - k) * math.log1p(-p)


def _ln_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _ln_sum(terms: list[float]) -> float:
    """ln of the sum of e^term."""
    top = max(terms)
    return top if top == -math.inf else top + math.log(sum(math.exp(term - top) for term in terms))
