"""What docs/from-sedna.md says in numbers, computed anew."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.gates.filter_gate import FilterGate, FilterSettings
from edgekit.gates.filters import FILTERS, Seen, is_hard
from edgekit.gates.policy import Gate, GateSettings
from tests.docs.test_docs import REPOSITORY, page, rows, section

PAGE = page("from-sedna.md")
SCENES = ("", "faded_", "dark_")


class Patches(NamedTuple):
    """Probabilities of the small model, shape (n, 7), and whether the large one has another label."""

    probabilities: NDArray[np.float64]
    differs: NDArray[np.bool_]


def patches(scene: str) -> Patches:
    with np.load(REPOSITORY / "tests/fixtures/pcb_bare_logits.npz") as archive:
        edge, cloud = archive[f"{scene}edge"].astype(np.float64), archive[f"{scene}cloud"]
    powers = np.exp(edge - edge.max(axis=1, keepdims=True))
    return Patches(powers / powers.sum(axis=1, keepdims=True), edge.argmax(axis=1) != cloud.argmax(axis=1))


def shown(sent: float, differing: float) -> str:
    return f"{100 * sent:.1f} %, {100 * differing:.1f} %"


def by_filter(name: str, value: float, scene: str) -> str:
    p, differs = patches(scene)
    hard = np.array([is_hard(name, dict.fromkeys(FILTERS[name], value), Seen([row.max()], row), 0.5) for row in p])
    return shown(hard.mean(), (~hard & differs).mean())


def by_risk() -> list[str]:
    """The mean of 8 runs: of 2,000 samples after the calibration, and of the last 2,000 of 4,000 after each change."""
    found: dict[str, list[tuple[float, float]]] = {scene: [] for scene in SCENES}
    for scene in SCENES[1:]:
        for seed in range(8):
            rng = np.random.default_rng(seed)
            gate = Gate(GateSettings(risk=0.02, confidence=0.9, calibration=1000))
            found[""].append(_stream(gate, patches(""), 3000, 1000, rng))
            found[scene].append(_stream(gate, patches(scene), 4000, 2000, rng))
    return [shown(*np.mean(found[scene], axis=0)) for scene in SCENES]


def _stream(gate: Gate, source: Patches, n: int, skipped: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share sent, and share answered at the edge that differs, of all but the first `skipped` of n samples."""
    ordered = np.sort(source.probabilities, axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    sent, wrong = np.zeros(n, bool), np.zeros(n, bool)
    for k, i in enumerate(rng.integers(0, len(margins), n)):
        differs, name = bool(source.differs[i]), str(rng.integers(2**60))
        decision = gate.decide(float(margins[i]), float(rng.random()), name)
        sent[k], wrong[k] = decision.send, differs and decision.reason in (None, "audit")
        if decision.reason is not None:
            gate.learn(decision.score, differs, decision.reason, name)
    return float(sent[skipped:].mean()), float(wrong[skipped:].mean())


def test_the_table_of_rules_is_what_they_do() -> None:
    table = {re.sub("`", "", cells[0]): cells[1:] for cells in rows(section(PAGE, "## Why `risk` is better"))}
    half = [by_filter("IBT", 0.5, scene) for scene in SCENES]
    assert half == [by_filter("Threshold", 0.5, scene) for scene in SCENES], "they stand in one row"
    assert table["IBT 0.5, 0.5; Threshold 0.5"] == half
    assert table["IBT 0.9, 0.9"] == [by_filter("IBT", 0.9, scene) for scene in SCENES]
    assert table["CrossEntropy 0.5"] == [by_filter("CrossEntropy", 0.5, scene) for scene in SCENES]
    assert table["risk = 0.02"] == by_risk()


def test_every_filter_is_listed_with_its_parameters_and_defaults() -> None:
    listed = {cells[0].strip("`"): cells[2] for cells in rows(section(PAGE, "## The filters")) if len(cells) == 3}
    for name, parameters in FILTERS.items():
        assert re.findall(r"`(\w+)` ([\d.]+)", listed[name]) == [
            (key, f"{value:g}") for key, value in parameters.items()
        ]


def test_the_status_shown_is_the_real_one() -> None:
    parameters = {"threshold_img": 0.9, "threshold_box": 0.9}
    gate = FilterGate(FilterSettings(filter="IBT", parameters=parameters, audit_share=0.5))
    for number in range(1000):
        hard, audited = number % 100 < 74, number < 600
        decision = gate.decide(0.9, 0.1 if audited else 0.9, str(number), Seen([0.8 if hard else 0.99]))
        if decision.reason == "audit" and number % 100 < 99:
            gate.learn(decision.score, False, "audit", str(number))
    assert f"`{gate.status().sentence}`" in PAGE


@pytest.mark.parametrize("name", ["IBT", "Threshold"])
def test_the_worked_defect_of_the_mean(name: str) -> None:
    scores = [0.95] * 9 + [0.45]
    value = 0.9 if name == "IBT" else 0.5
    assert is_hard(name, dict.fromkeys(FILTERS[name], value), Seen(scores), 0.5) is (name == "IBT")
