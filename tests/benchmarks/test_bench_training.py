"""The training benchmark's arithmetic and networks; its figures are for a quiet machine."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import numpy_helper

from benchmarks import training
from benchmarks.training import Case, error, figures, trained, verdict
from benchmarks.training_child import batch
from benchmarks.training_networks import KINDS, network

GOOD: list[dict[str, Any]] = [
    {"variant": "full", "step_ratio": 0.98, "rss_ratio": 0.3, "max_grad_rel_error": 2e-6},
    {"variant": "last", "step_ratio": 0.5, "rss_ratio": 0.3},
    {"variant": "head", "step_ratio": 0.2, "rss_ratio": 0.4, "max_grad_rel_error": 1e-7},
]


def test_the_verdict_is_good_where_all_goals_are_met() -> None:
    found = verdict(GOOD)
    assert set(found) == {"full_step_met", "last_step_met", "head_step_met", "rss_met", "gradients_met"}
    assert all(found.values())


@pytest.mark.parametrize(
    ("row", "change", "goal"),
    [
        (0, {"step_ratio": 1.01}, "full_step_met"),
        (1, {"step_ratio": 0.61}, "last_step_met"),
        (2, {"step_ratio": 0.51}, "head_step_met"),
        (1, {"rss_ratio": 0.51}, "rss_met"),
        (2, {"max_grad_rel_error": 2e-4}, "gradients_met"),
        (2, {"max_grad_rel_error": math.nan}, "gradients_met"),
    ],
)
def test_a_goal_that_is_missed_shows(row: int, change: dict[str, Any], goal: str) -> None:
    rows = [dict(one) for one in GOOD]
    rows[row] |= change
    found = verdict(rows)
    assert not found.pop(goal) and all(found.values())


def test_ratios_are_those_of_medians_and_the_spread_is_that_of_the_turns() -> None:
    def windows(*walls: float) -> list[dict[str, float]]:
        return [{"wall_s": wall, "cpu_s": wall / 2, "loss": 0.0} for wall in walls]

    found = figures(windows(0.1, 0.2, 0.9), windows(0.2, 0.4, 0.3))
    assert found["ms"] == pytest.approx(200) and found["torch_ms"] == pytest.approx(300)
    assert found["step_ratio"] == pytest.approx(2 / 3) and found["cpu_ratio"] == pytest.approx(2 / 3)
    assert (found["low"], found["high"]) == (pytest.approx(0.5), pytest.approx(1.75))
    assert figures(windows(0.1), [])["step_ratio"] is None


def test_an_error_is_relative_to_the_largest_value_of_its_tensor_but_not_to_next_to_nothing(tmp_path: Path) -> None:
    exact = {"a": np.array([100.0, 1.0]), "b": np.array([1e-6, 0.0])}
    np.savez(tmp_path / "double-frozen-0.npz", **exact)
    np.savez(tmp_path / "ours-frozen-0.npz", a=exact["a"] + [0.0, 0.5], b=exact["b"] + 1e-6)
    assert error(tmp_path, "ours", "frozen", 0) == pytest.approx(0.005)
    np.savez(tmp_path / "ours-frozen-0.npz", a=exact["a"])
    with pytest.raises(SystemExit, match="other weights"):
        error(tmp_path, "ours", "frozen", 0)


def test_mobilenet_v3_has_the_weights_of_the_original_and_the_variants_train_less_and_less() -> None:
    net = network("mobilenet_v3")
    sizes = {one.name: math.prod(one.dims) for one in net.model.graph.initializer}
    # torchvision's mobilenet_v3_small: 927,008 before its classifier, here with four classes
    assert sum(sizes[name] for name in net.parameters()) == 927_008 + 576 * 1024 + 1024 + 1024 * 4 + 4
    for name in KINDS:
        net = network(name)
        count = [len(trained(net, Case(name, variant, 8, 1))) for variant in ("full", "last", "head")]
        assert count[0] > count[1] > count[2] >= 2


def test_without_pytorch_our_own_figures_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGED_BENCH_PYTHON", str(tmp_path / "missing"))
    monkeypatch.setattr(training, "cases", lambda quick: [Case("tiny_cnn", "head", 8, 1)])
    training.main(["--quick", "--json", str(tmp_path / "out.json")])
    assert "PyTorch: not installed" in capsys.readouterr().out
    said = json.loads((tmp_path / "out.json").read_text("utf-8"))
    (row,) = said["cases"]
    assert said["torch"] == "not installed" and row["step_ratio"] is None
    assert row["ms"] > 0 and row["cpu_ms"] > 0 and row["rss_mb"] > 20 and row["session_s"] > 0
    assert 0.3 < row["artifact_mb"] < 1.0


@pytest.mark.parametrize("name", list(KINDS))
def test_the_modules_of_pytorch_answer_as_the_networks(name: str) -> None:
    torch = pytest.importorskip("torch")
    from benchmarks import training_torch

    model = network(name).model
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if "." in one.name}
    images, _ = batch(2, KINDS[name].side)
    net, _ = training_torch.module(name, weights)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(images)).numpy()
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": images})[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    with pytest.raises(ValueError, match="other weights"):
        training_torch.module(name, {**weights, "x": images})
