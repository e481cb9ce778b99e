"""A derived step learns on stock onnxruntime, stops and goes on, accumulates, and hands its weights to the model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnxruntime
import pytest

from edgekit import tensors
from edgekit.autodiff.builder import GraphBuilder
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.interfaces import Parameter
from edgekit.autodiff.manifest import MANIFEST, MODEL_DATA
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_reestimation, build_step
from edgekit.training import STEP_FOLDER, WEIGHTS_FILE, read_weights, replace_weights, write_plan
from tests.edgekit.autodiff import networks
from tests.edgekit.autodiff.losses import CrossEntropy, Descent

RNG = np.random.default_rng(11)
FEEDS: dict[str, Any] = {
    "x": RNG.normal(size=(8, 3, 16, 16)).astype(np.float32),
    "labels": RNG.integers(0, 4, 8),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    step = build_step(
        networks.small(size=16, bn=True), CrossEntropy(), Descent(), batch_norm="train", outputs=["logits"]
    )
    step.save(tmp_path / "step")
    return tmp_path / "step"


def logits(path: Path, x: Any) -> Any:
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]


def test_a_step_learns_a_batch_by_heart(folder: Path) -> None:
    runner = StepRunner(folder)
    losses = [float(runner.step({**FEEDS, "lr": 0.02})["loss"]) for _ in range(40)]
    assert losses[-1] < 0.1 < losses[0]


def test_a_joint_of_trained_and_frozen_branches_learns(tmp_path: Path) -> None:
    """onnxruntime ends with SIGSEGV where an output of a Split that nobody needs has no name."""
    helper, weights = onnx.helper, {name: RNG.normal(size=(48, 4)).astype(np.float32) for name in ("w1", "w2", "w3")}
    weights["w4"] = RNG.normal(size=(12, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        *(helper.make_node("MatMul", ["flat", f"w{at}"], [f"branch{at}"]) for at in (1, 2, 3)),
        helper.make_node("Concat", ["branch1", "branch2", "branch3"], ["joint"], axis=1),
        helper.make_node("MatMul", ["joint", "w4"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for trained in (["w1", "w4"], ["w2", "w4"], ["w3", "w4"], ["w1", "w3"]):
        folder = tmp_path / "-".join(trained)
        build_step(model, CrossEntropy(), Descent(), trained).save(folder)
        runner = StepRunner(folder)
        feeds = {"x": FEEDS["x"][:, :, :4, :4], "labels": FEEDS["labels"], "lr": 0.05}
        losses = [float(runner.step(feeds)["loss"]) for _ in range(30)]
        assert losses[-1] < losses[0] and set(runner.parameters()) == set(trained)


def test_the_same_steps_give_the_same_states(folder: Path) -> None:
    one, other = StepRunner(folder), StepRunner(folder)
    for runner in (one, other):
        for _ in range(3):
            runner.step({**FEEDS, "lr": 0.02})
    assert all(np.array_equal(value, other.states()[name]) for name, value in one.states().items())


def test_a_runner_goes_on_from_the_states_of_another(folder: Path) -> None:
    whole, first = StepRunner(folder), StepRunner(folder)
    for _ in range(4):
        whole.step({**FEEDS, "lr": 0.02})
    for _ in range(2):
        first.step({**FEEDS, "lr": 0.02})
    second = StepRunner(folder, states=first.states())
    for _ in range(2):
        second.step({**FEEDS, "lr": 0.02})
    assert all(np.array_equal(value, second.states()[name]) for name, value in whole.states().items())


def test_the_written_model_answers_as_the_step_in_training(folder: Path, tmp_path: Path) -> None:
    build_step(networks.small(size=16, bn=True), CrossEntropy(), Descent(), outputs=["logits"]).save(
        tmp_path / "frozen"
    )
    runner = StepRunner(tmp_path / "frozen")
    for _ in range(3):
        runner.step({**FEEDS, "lr": 0.02})
    written = runner.write_model(tmp_path / "model")
    expected = runner.step({**FEEDS, "lr": 0.0})["logits"]
    assert np.allclose(logits(written, FEEDS["x"]), expected, atol=1e-4)
    assert not np.allclose(logits(tmp_path / "frozen" / "model.onnx", FEEDS["x"]), expected, atol=1e-2)
    onnx.checker.check_model(str(written))


def test_a_model_that_is_written_again_is_replaced_as_a_whole(folder: Path, tmp_path: Path) -> None:
    runner = StepRunner(folder)
    runner.write_model(tmp_path / "model")
    (tmp_path / "reader").hardlink_to(tmp_path / "model" / MODEL_DATA)  # as a reader that has the old file open
    before = (tmp_path / "reader").read_bytes()
    assert before == (folder / MODEL_DATA).read_bytes()
    runner.step({**FEEDS, "lr": 0.02})
    runner.write_model(tmp_path / "model")
    assert (tmp_path / "reader").read_bytes() == before != (tmp_path / "model" / MODEL_DATA).read_bytes()
    assert sorted(one.name for one in (tmp_path / "model").iterdir()) == ["model.bin", "model.onnx"]


class Counting:
    """Descent with one state that has no axes."""

    def emit(self, builder: GraphBuilder, parameters: Sequence[Parameter]) -> None:
        Descent().emit(builder, parameters)
        done = builder.state("done", np.zeros((), np.float32))
        builder.update("done", builder.add(done, builder.scalar(1.0, 0)))


def test_a_state_without_axes_stays_one(tmp_path: Path) -> None:
    build_step(networks.small(size=16), CrossEntropy(), Counting(), "^fc2").save(tmp_path / "step")
    first = StepRunner(tmp_path / "step")
    for _ in range(3):
        first.step({**FEEDS, "lr": 0.02})
    states = first.states()
    assert states["done"].shape == () and states["done"] == 3
    second = StepRunner(tmp_path / "step", states=states)
    second.step({**FEEDS, "lr": 0.02})
    assert second.states()["done"].shape == () and second.states()["done"] == 4


def test_frozen_weights_are_kept_once(tmp_path: Path) -> None:
    build_step(networks.resnet18(size=32), CrossEntropy(), Descent(), "^fc").save(tmp_path / "step")
    size = sum(one.stat().st_size for one in (tmp_path / "step").iterdir())
    assert size < 11.2e6 * 4 * 1.01


def test_a_step_may_share_the_file_of_weights_of_a_model(tmp_path: Path) -> None:
    step = build_step(networks.small(size=16, bn=True), CrossEntropy(), Descent(), "^fc", outputs=["logits"])
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in step.model.graph.initializer if one.dims}
    shared = tmp_path / "weights.safetensors"
    shared.write_bytes(tensors.save(weights))
    step.save(tmp_path / "shared", shared)
    step.save(tmp_path / "alone")
    assert shared.samefile(tmp_path / "shared" / MODEL_DATA)
    one, other = StepRunner(tmp_path / "shared"), StepRunner(tmp_path / "alone")
    for _ in range(2):
        assert np.array_equal(one.step({**FEEDS, "lr": 0.02})["loss"], other.step({**FEEDS, "lr": 0.02})["loss"])
    answers = [logits(runner.write_model(tmp_path / f"m{i}"), FEEDS["x"]) for i, runner in enumerate((one, other))]
    assert np.array_equal(*answers)
    assert shared.read_bytes() == tensors.save(weights)
    for changed, words in (({**weights, "fc2.bias": weights["fc2.bias"] + 1}, "other values of fc2.bias"),
                           ({"fc1.bias": weights["fc1.bias"]}, "lacks fc1.weight")):  # fmt: skip
        shared.write_bytes(tensors.save(changed))
        with pytest.raises(AutodiffError, match=words):
            step.save(tmp_path / words, shared)


def test_a_plan_has_the_weights_on_the_disk_once_and_keeps_the_first_ones_for_the_step(tmp_path: Path) -> None:
    step = build_step(networks.small(size=16, bn=True), CrossEntropy(), Descent(), batch_norm="train")
    write_plan(step, tmp_path)
    served, own = tmp_path / WEIGHTS_FILE, tmp_path / STEP_FOLDER / MODEL_DATA
    assert served.samefile(own)
    runner = StepRunner(tmp_path / STEP_FOLDER)
    before = runner.parameters()
    runner.step({**FEEDS, "lr": 0.02})
    replace_weights(served, runner.parameters())
    assert not served.samefile(own)
    again = StepRunner(tmp_path / STEP_FOLDER).parameters()
    assert all(np.array_equal(value, again[name]) for name, value in before.items())
    with pytest.raises(AutodiffError, match="holds a train step already"):
        write_plan(step, tmp_path)
    assert all(np.array_equal(read_weights(served)[name], value) for name, value in runner.parameters().items())


def test_the_written_model_has_the_running_statistics(folder: Path, tmp_path: Path) -> None:
    runner = StepRunner(folder)
    before = runner.parameters()
    for _ in range(3):
        runner.step({**FEEDS, "lr": 0.0})
    after = runner.parameters()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {one.name for one in runner.manifest.of("batch_norm")}
    model = onnx.load(runner.write_model(tmp_path / "model"))
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    assert all(np.array_equal(stored[name], after[name]) for name in after)


def test_micro_batches_accumulate_to_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    model = networks.small(size=16, bn=True)
    build_step(model, CrossEntropy(), Descent()).save(tmp_path / "whole")
    build_step(model, CrossEntropy(), Descent(), accumulate=True).save(tmp_path / "parts")
    whole, parts = StepRunner(tmp_path / "whole"), StepRunner(tmp_path / "parts")
    for _ in range(2):
        whole.step({**FEEDS, "lr": 0.02})
        for start, end in ((0, 5), (5, 8)):
            piece = {key: value[start:end] for key, value in FEEDS.items()}
            parts.accumulate(piece, (end - start) / 8)
        parts.apply({"lr": 0.02})
    for name, value in whole.parameters().items():
        assert np.allclose(parts.states()[name], value, atol=1e-5), name


def test_an_incomplete_batch_is_not_applied(tmp_path: Path) -> None:
    build_step(networks.small(size=16), CrossEntropy(), Descent(), accumulate=True).save(tmp_path / "parts")
    runner = StepRunner(tmp_path / "parts")
    runner.accumulate(FEEDS, 0.5)
    with pytest.raises(AutodiffError, match=r"0\.500 of a batch"):
        runner.apply({"lr": 0.02})
    runner.discard()
    assert all(not runner.states()[one.name].any() for one in runner.manifest.of("accumulator"))


def test_gradients_alone_are_given_by_name(tmp_path: Path) -> None:
    build_step(networks.small(size=16), CrossEntropy(), None, "^fc2").save(tmp_path / "grads")
    fetched, gradients = StepRunner(tmp_path / "grads").gradients(FEEDS)
    assert set(gradients) == {"fc2.weight", "fc2.bias"}
    assert gradients["fc2.weight"].shape == (4, 64)
    assert np.isfinite(fetched["loss"])


def test_reestimation_moves_the_running_statistics_to_those_of_new_pictures(tmp_path: Path) -> None:
    build_reestimation(networks.small(size=16, bn=True), momentum=0.5).save(tmp_path / "again")
    runner = StepRunner(tmp_path / "again")
    for _ in range(30):
        runner.step({"x": FEEDS["x"]})
    model = onnx.load(runner.write_model(tmp_path / "model"))
    inner = onnx.ModelProto()
    inner.CopyFrom(model)
    first = next(node for node in inner.graph.node if node.op_type == "BatchNormalization")
    inner.graph.output.append(onnx.helper.make_tensor_value_info(first.input[0], onnx.TensorProto.FLOAT, None))
    x = onnxruntime.InferenceSession(inner.SerializeToString()).run(None, {"x": FEEDS["x"]})[-1]
    assert np.allclose(runner.states()[first.input[3]], x.mean((0, 2, 3)), atol=1e-4)
    assert np.allclose(runner.states()[first.input[4]], x.var((0, 2, 3), ddof=1), rtol=1e-3)


def test_a_batch_that_is_not_finite_changes_no_parameter_and_the_optimiser_starts_anew(folder: Path) -> None:
    runner = StepRunner(folder)
    runner.step({**FEEDS, "lr": 0.02})
    before = runner.parameters()
    with pytest.raises(AutodiffError, match="loss is not finite"):
        runner.step({**FEEDS, "x": np.full_like(FEEDS["x"], np.nan), "lr": 0.02})
    assert all(np.array_equal(value, runner.parameters()[name]) for name, value in before.items())
    assert not any(runner.states()[one.name].any() for one in runner.manifest.of("optimiser"))
    assert np.isfinite(runner.step({**FEEDS, "lr": 0.02})["loss"])


def test_parameters_that_overflowed_are_neither_kept_nor_written(tmp_path: Path) -> None:
    build_step(networks.small(size=16), CrossEntropy(), Descent()).save(tmp_path / "step")
    runner = StepRunner(tmp_path / "step")
    runner.step({**FEEDS, "x": FEEDS["x"] * np.float32(1e12), "lr": 1e30})
    with pytest.raises(AutodiffError, match="is not finite: gradients overflowed"):
        runner.states()
    with pytest.raises(AutodiffError, match="is not finite"):
        runner.write_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": FEEDS["x"], "labels": FEEDS["labels"]}, "needs the input lr; it takes x, labels, lr"),
        ({**FEEDS, "lr": 0.1, "y": 1}, "has no input y"),
        ({**FEEDS, "x": FEEDS["x"][:, :2], "lr": 0.1}, r"input x has the shape \[8, 2, 16, 16\]"),
        ({**FEEDS, "lr": [0.1]}, r"input lr has the shape \[1\]"),
        ({**FEEDS, "lr": float("nan")}, "input lr is not finite"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_by_name(folder: Path, feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(AutodiffError, match=message):
        StepRunner(folder).step(feeds)


def test_states_that_do_not_fit_are_refused(folder: Path) -> None:
    runner = StepRunner(folder)
    with pytest.raises(AutodiffError, match="no state other"):
        runner.load({"other": np.zeros(1, np.float32)})
    with pytest.raises(AutodiffError, match="has the shape"):
        runner.load({"fc2.bias": np.zeros(5, np.float32)})
    with pytest.raises(AutodiffError, match="not finite"):
        runner.load({"fc2.bias": np.full(4, np.inf, np.float32)})


def test_damaged_artefacts_are_refused(folder: Path) -> None:
    with pytest.raises(AutodiffError, match="holds a train step already"):
        build_step(networks.small(size=16), CrossEntropy(), Descent()).save(folder)
    data = (folder / MODEL_DATA).read_bytes()
    (folder / MODEL_DATA).write_bytes(data[:100])
    with pytest.raises(AutodiffError, match="ends before the values"):
        StepRunner(folder)
    (folder / MANIFEST).write_text('{"format": "train-step/1", "kind": "update"}')
    with pytest.raises(AutodiffError, match="no description of a train step"):
        StepRunner(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(AutodiffError, match="holds no train step"):
        StepRunner(folder)


def test_running_needs_no_onnx_package(folder: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from pathlib import Path; import numpy as np\n"
        "from edgekit.autodiff.run import StepRunner\n"
        f"r = StepRunner(Path({str(folder)!r}))\n"
        "x = np.zeros((2, 3, 16, 16), np.float32)\n"
        "print(float(r.step({'x': x, 'labels': np.array([0, 1]), 'lr': 0.1})['loss']))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert np.isfinite(float(found.stdout))
