"""The adaptation benchmark's own arithmetic and models; its figures are for a quiet machine."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks import adapt_models
from benchmarks.adapt import cases, verdict
from benchmarks.turns import Round, Timed, interleaved


def test_the_verdict_names_every_goal() -> None:
    good = {"regret": 0.01, "speedup_vs_default": 1.2, "adapt_s": 20.0, "second_s": 0.4}
    met = verdict([good])
    assert all(met[f"{name}_met"] for name in ("regret", "never_slower", "adaptation", "second_start"))
    for key, value, name in (
        ("regret", 0.06, "regret"),
        ("speedup_vs_default", 0.9, "never_slower"),
        ("adapt_s", 61.0, "adaptation"),
        ("second_s", 1.1, "second_start"),
    ):
        assert not verdict([good, {**good, key: value}])[f"{name}_met"]


def test_timing_in_turn_finds_the_slower_one() -> None:
    runs = {"slow": lambda number: time.sleep(0.004), "quick": lambda number: time.sleep(0.001)}
    timed = interleaved(runs, rounds=3, window_s=0.02, patience=1)
    assert timed.ms("quick") >= 1.0 and timed.ms("slow") >= 4.0
    assert timed.ratio("slow", "quick") > 1
    assert 0.0 <= timed.noise <= 1.0


def test_a_machine_that_changes_its_speed_does_not_change_the_ratio() -> None:
    speeds = [1.0, 1.0, 3.0, 3.0, 1.5]
    seen = Timed([Round({"one": 0.002 * speed, "other": 0.001 * speed}, 0.0) for speed in speeds])
    assert seen.ratio("one", "other") == pytest.approx(2.0)
    # A disturbance that hits one of the two in a single round is an outlier, not a result.
    seen.rounds[0] = Round({"one": 0.002, "other": 0.009}, 0.0)
    assert seen.ratio("one", "other") == pytest.approx(2.0)


def test_at_least_six_models_without_any_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGED_REAL_DATA", raising=False)
    names = [case.name for case in cases()]
    assert len(names) >= 6 and len(set(names)) == len(names)


def test_the_quantised_model_answers_much_as_the_other(tmp_path: Path) -> None:
    adapt_models.small(tmp_path / "fp32.onnx", 64)
    adapt_models.quantise(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", 64)
    picture = np.random.default_rng(1).random((1, 3, 64, 64)).astype(np.float32)
    exact, rough = (
        onnxruntime.InferenceSession(str(tmp_path / name)).run(None, {"input": picture})[0]
        for name in ("fp32.onnx", "int8.onnx")
    )
    assert exact.shape == (1, adapt_models.LABELS)
    assert np.abs(exact - rough).max() < 0.15 * np.ptp(exact)
