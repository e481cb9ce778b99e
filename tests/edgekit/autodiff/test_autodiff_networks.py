"""Whole networks: gradients and loss curves equal PyTorch's, with any batch and with any part frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_step
from tests.edgekit.autodiff import networks
from tests.edgekit.autodiff.checking import check_gradients, evaluate, on_runtime, relative
from tests.edgekit.autodiff.losses import CrossEntropy, Descent
from tests.edgekit.autodiff.torch_oracle import TorchModel

Maker = Callable[[], onnx.ModelProto]
NETWORKS: dict[str, Maker] = {
    "small": lambda: networks.small(size=32),
    "small with normalisation": lambda: networks.small(size=32, bn=True),
    "ResNet-18": lambda: networks.resnet18(size=32),
    "MobileNetV2": lambda: networks.mobilenet_v2(size=32),
    "MobileNetV3": lambda: networks.mobilenet_v3(size=32),
}


def batch(count: int, size: int, seed: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(count, 3, size, size)).astype(np.float32), "labels": rng.integers(0, 4, count)}


@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_gradients_of_a_network_with_normalisation_equal_differences(mode: str) -> None:
    n = networks.Network(3, size=8)
    x = n.relu6(n.cbn("x", "a", 6, 3, 2))
    y = n.relu6(n.cbn(n.relu6(n.cbn(x, "b.expand", 12, 1)), "b.depth", 12, 3, 1, 12))
    x = n.node("Add", x, n.cbn(y, "b.project", 6, 1))
    model = n.build(n.linear(n.head(n.norm(x, "last")), "fc", 4))
    check_gradients(model, batch(5, 8)["x"], batch_norm=mode)


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_gradients_of_whole_networks_equal_those_of_pytorch_in_double_precision(name: str, mode: str) -> None:
    torch = pytest.importorskip("torch")
    model, feeds = NETWORKS[name](), batch(4, 32)
    step = build_step(model, CrossEntropy(), None, batch_norm=mode)  # type: ignore[arg-type]
    found = evaluate(step.graph, {**feeds, **step.initial})
    oracle = TorchModel(model, mode == "train", double=True)
    leaves = oracle.parameters(list(step.manifest.gradients))
    out = oracle(torch.from_numpy(feeds["x"]).double())
    torch.nn.functional.cross_entropy(out, torch.from_numpy(feeds["labels"])).backward()
    largest = max(float(leaf.grad.abs().max()) for leaf in leaves)
    for key, leaf in zip(step.manifest.gradients, leaves, strict=True):
        error = relative(found[f"{key}.gradient"], leaf.grad.numpy(), floor=1e-6 * largest)
        assert error < 1e-4, f"{key}: {error:.1e}"
    for one in step.manifest.of("batch_norm"):
        assert relative(found[f"{one.name}.new"], oracle.tensors[one.name].numpy()) < 1e-5, one.name


@pytest.mark.parametrize("name", list(NETWORKS))
def test_gradients_on_onnxruntime_equal_those_of_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    model, feeds = NETWORKS[name](), batch(4, 32)
    step = build_step(model, CrossEntropy(), None, batch_norm="frozen")
    found = on_runtime(step.graph, {**feeds, **step.initial})
    oracle = TorchModel(model, False, double=True)
    leaves = oracle.parameters(list(step.manifest.gradients))
    out = oracle(torch.from_numpy(feeds["x"]).double())
    torch.nn.functional.cross_entropy(out, torch.from_numpy(feeds["labels"])).backward()
    largest = max(float(leaf.grad.abs().max()) for leaf in leaves)
    for key, leaf in zip(step.manifest.gradients, leaves, strict=True):
        error = relative(found[f"{key}.gradient"], leaf.grad.numpy(), floor=1e-3 * largest)
        assert error < 1e-4, f"{key}: {error:.1e}"


@pytest.mark.parametrize("name", ["small", "small with normalisation"])
def test_fifty_steps_follow_the_loss_curve_of_pytorch(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = NETWORKS[name]()
    build_step(model, CrossEntropy(), Descent(), batch_norm="train").save(tmp_path / "step")
    runner = StepRunner(tmp_path / "step")
    oracle = TorchModel(model, True)
    names = [one.name for one in runner.manifest.of("parameter")]
    optimiser = torch.optim.SGD(oracle.parameters(names), lr=0.01, momentum=0.9)
    ours, theirs = [], []
    for index in range(50):
        feeds = batch(8, 32, seed=index % 4)
        ours.append(float(runner.step({**feeds, "lr": 0.01})["loss"]))
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            oracle(torch.from_numpy(feeds["x"])), torch.from_numpy(feeds["labels"])
        )
        loss.backward()
        optimiser.step()
        theirs.append(loss.item())
    assert ours[-1] < 0.9 * ours[0]
    assert np.abs(np.array(ours) - np.array(theirs)).max() < 2e-3


def test_one_artefact_takes_batches_of_any_size() -> None:
    step = build_step(networks.small(size=16, bn=True), CrossEntropy(), None, batch_norm="train")
    for count in (2, 5, 16):
        feeds = {**batch(count, 16), **step.initial}
        exact, fast = evaluate(step.graph, feeds), on_runtime(step.graph, feeds)
        assert relative(fast["fc1.weight.gradient"], exact["fc1.weight.gradient"]) < 1e-4


def test_gradients_of_a_frozen_network_are_the_mean_of_those_of_single_pictures() -> None:
    step = build_step(networks.mobilenet_v2(size=32), CrossEntropy(), None, r"^(features\.17|classifier)")
    feeds = batch(3, 32)
    whole = on_runtime(step.graph, {**feeds, **step.initial})
    parts = [
        on_runtime(step.graph, {"x": feeds["x"][i : i + 1], "labels": feeds["labels"][i : i + 1], **step.initial})
        for i in range(3)
    ]
    for name in step.manifest.gradients:
        key = f"{name}.gradient"
        assert relative(whole[key], np.mean([part[key] for part in parts], 0), 1e-4) < 1e-4


def test_nothing_is_differentiated_before_the_first_trained_weight() -> None:
    model = networks.mobilenet_v2(size=32)
    head = build_step(model, CrossEntropy(), Descent(), "^classifier")
    last = build_step(model, CrossEntropy(), Descent(), r"^(features\.1[5678]|classifier)")
    whole = build_step(model, CrossEntropy(), Descent())
    sizes = [len(one.graph.graph.node) for one in (head, last, whole)]
    assert sizes[0] < len(model.graph.node) + 40
    assert sizes[0] < sizes[1] < sizes[2] / 2
    assert {one.name for one in head.manifest.of("parameter")} == {"classifier.weight", "classifier.bias"}
    assert head.manifest.frozen_prefix
    assert not whole.manifest.frozen_prefix


def test_frozen_layers_keep_their_running_statistics_in_train_mode() -> None:
    step = build_step(networks.resnet18(size=32), CrossEntropy(), Descent(), "^(layer4|fc)", batch_norm="train")
    assert all(one.name.startswith("layer4") for one in step.manifest.of("batch_norm"))
    everywhere = build_step(networks.resnet18(size=32), CrossEntropy(), Descent(), "^fc", batch_norm="reestimate")
    assert len(everywhere.manifest.of("batch_norm")) == 40
