"""Losses and optimisers beside PyTorch's own, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from loss_graphs import Training, run_loss

from edgekit.autodiff.losses import AbsoluteError, BinaryCrossEntropy, CrossEntropy, Distillation
from edgekit.autodiff.optimisers import AdamW, Clipped, Sgd

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
Z = RNG.normal(0, 2, (6, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 6)
WEIGHTS = RNG.uniform(0.2, 4, 5).astype(np.float32)
TARGETS = RNG.uniform(0, 1, (6, 5)).astype(np.float32)
TEACHER = RNG.normal(0, 2, (6, 5)).astype(np.float32)


def compare(ours: Any, fed: dict[str, Any], theirs: Any) -> None:
    got = run_loss(ours, {"z": Z}, fed)
    z = torch.tensor(Z, dtype=torch.float64, requires_grad=True)
    loss = theirs(z)
    loss.backward()
    np.testing.assert_allclose(got["loss"], loss.item(), rtol=1e-5)
    np.testing.assert_allclose(got["z"], z.grad.numpy(), rtol=1e-4, atol=1e-6)


def double(array: Any) -> Any:
    return torch.tensor(array, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_pytorchs(smoothing: float, weighted: bool) -> None:
    reference = torch.nn.CrossEntropyLoss(weight=double(WEIGHTS) if weighted else None, label_smoothing=smoothing)
    fed = {"labels": LABELS, **({"class_weights": WEIGHTS} if weighted else {})}
    ours = CrossEntropy(weighted=weighted, smoothing=smoothing)
    compare(ours, fed, lambda z: reference(z, torch.tensor(LABELS)))


def test_binary_cross_entropy_is_pytorchs() -> None:
    reference = torch.nn.BCEWithLogitsLoss()
    compare(BinaryCrossEntropy(), {"targets": TARGETS}, lambda z: reference(z, double(TARGETS)))


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_absolute_error_is_pytorchs(beta: float) -> None:
    reference = torch.nn.SmoothL1Loss(beta=beta)
    compare(AbsoluteError(beta=beta), {"targets": TARGETS}, lambda z: reference(z, double(TARGETS)))


def test_distillation_is_pytorchs_divergence() -> None:
    reference = torch.nn.KLDivLoss(reduction="batchmean")

    def theirs(z: Any) -> Any:
        cold = torch.log_softmax(z / 3, 1), torch.softmax(double(TEACHER) / 3, 1)
        return 0.7 * 9 * reference(*cold) + 0.3 * torch.nn.functional.cross_entropy(z, torch.tensor(LABELS))

    compare(Distillation(temperature=3.0, share=0.7), {"teacher": TEACHER, "labels": LABELS}, theirs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Sgd(weight_decay=0.1, decay="all"), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1)),
        (Sgd(nesterov=True), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)),
        (AdamW(decay="all"), lambda p: torch.optim.AdamW(p, 0.1)),
        (Clipped(Sgd(momentum=0.0), 0.5), lambda p: torch.optim.SGD(p, 0.1)),
    ],
)
def test_ten_steps_of_an_optimiser_are_pytorchs(ours: Any, theirs: Any) -> None:
    start = {"w": TEACHER, "b": WEIGHTS}
    mine = Training(ours, start)
    parameters = {name: double(array).requires_grad_() for name, array in start.items()}
    optimiser = theirs(list(parameters.values()))
    for step in range(10):
        rng = np.random.default_rng(step)
        gradients = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in start.items()}
        mine.step(gradients, 0.1)
        for name, parameter in parameters.items():
            parameter.grad = double(gradients[name])
        if isinstance(ours, Clipped):
            torch.nn.utils.clip_grad_norm_(list(parameters.values()), 0.5)
        optimiser.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(mine.state[name], parameter.detach().numpy(), rtol=1e-4, atol=1e-5)
