from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import sedna_rules


def test_cross_entropy_is_one_minus_the_normalised_entropy() -> None:
    p = np.array([[0.9, 0.1], [0.88, 0.12], [1.0, 0.0], [0.5, 0.5]])
    # With two classes the default of 0.5 is crossed where the best probability is about 0.89.
    assert sedna_rules.cross_entropy(p).tolist() == [False, True, False, True]
    seven = np.array([[0.4] + [0.1] * 6])
    value = 1 + sum(x * math.log(x) for x in seven[0]) / math.log(7)
    assert sedna_rules.cross_entropy(seven, t=value + 1e-9).tolist() == [True]
    assert sedna_rules.cross_entropy(seven, t=value - 1e-9).tolist() == [False]


def test_threshold_and_ibt_see_one_box() -> None:
    p = np.array([[0.49, 0.51], [0.5, 0.5], [0.3, 0.4], [0.95, 0.05], [0.9, 0.1]], float)
    assert sedna_rules.threshold(p).tolist() == [False, False, True, False, False]
    assert sedna_rules.ibt(p).tolist() == [False, True, True, False, False]
    assert sedna_rules.ibt(p, 0.9, 0.9).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("name", list(sedna_rules.RULES))
def test_every_rule_takes_a_certain_answer(name: str) -> None:
    hard = sedna_rules.RULES[name](np.array([[1.0, 0.0, 0.0]], np.float32))
    assert hard.shape == (1,) and not hard[0]
