from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_graphs import run_loss, slope
from numpy.typing import NDArray

from edgekit.autodiff.builder import GraphBuilder
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.losses import (
    AbsoluteError,
    BinaryCrossEntropy,
    CentrePointLoss,
    CrossEntropy,
    Distillation,
    GeneralisedIou,
)

seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 5)


def close(have: Any, want: Any) -> None:
    np.testing.assert_allclose(have, want, rtol=2e-4, atol=2e-5)


def log_softmax(z: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = z - z.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy(
    z: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64], smoothing: float
) -> float:
    """PyTorch's CrossEntropyLoss, written out."""
    classes = z.shape[1]
    target = np.full(z.shape, smoothing / classes)
    target[np.arange(len(z)), labels] += 1 - smoothing
    return float(-(target * weights * log_softmax(z)).sum() / weights[labels].sum())


@settings(deadline=None, max_examples=25)
@given(seeds, sizes, st.integers(2, 6), st.sampled_from([0.0, 0.1, 0.4]), st.booleans())
def test_cross_entropy_and_its_gradient_are_those_of_its_formula(
    seed: int, count: int, classes: int, smoothing: float, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (count, classes)).astype(np.float32)
    labels = rng.integers(0, classes, count)
    weights = rng.uniform(0.2, 4, classes).astype(np.float32) if weighted else np.ones(classes, np.float32)
    fed = {"labels": labels, **({"class_weights": weights} if weighted else {})}
    got = run_loss(CrossEntropy(weighted=weighted, smoothing=smoothing), {"z": z}, fed)
    close(got["loss"], cross_entropy(z.astype(np.float64), labels, weights, smoothing))
    close(got["z"], slope(lambda at: cross_entropy(at, labels, weights, smoothing), z))


def test_cross_entropy_of_hopeless_logits_is_finite() -> None:
    z = np.array([[1e4, -1e4, 0], [0, 0, -3e4]], np.float32)
    got = run_loss(CrossEntropy(), {"z": z}, {"labels": np.array([1, 2])})
    assert np.isfinite(got["loss"]) and np.isfinite(got["z"]).all()
    close(got["z"].sum(axis=1), [0, 0])


@settings(deadline=None, max_examples=25)
@given(seeds, sizes, st.integers(2, 5), st.sampled_from([1.0, 2.0, 5.0]), st.sampled_from([0.3, 1.0]))
def test_distillation_mixes_soft_and_hard_targets(
    seed: int, count: int, classes: int, temperature: float, share: float
) -> None:
    rng = np.random.default_rng(seed)
    z, teacher = (rng.normal(0, 2, (count, classes)).astype(np.float32) for _ in range(2))
    labels = rng.integers(0, classes, count)

    def formula(at: NDArray[np.float64]) -> float:
        log_q, log_p = log_softmax(teacher / temperature), log_softmax(at / temperature)
        soft = (np.exp(log_q) * (log_q - log_p)).sum() / count * temperature**2
        return float(share * soft + (1 - share) * cross_entropy(at, labels, np.ones(classes), 0.0))

    fed: dict[str, NDArray[Any]] = {"teacher": teacher}
    if share < 1:
        fed["labels"] = labels
    got = run_loss(Distillation(temperature=temperature, share=share), {"z": z}, fed)
    close(got["loss"], formula(z.astype(np.float64)))
    close(got["z"], slope(formula, z))


def test_a_student_that_agrees_with_its_teacher_learns_nothing() -> None:
    z = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    got = run_loss(Distillation(share=1.0), {"z": z}, {"teacher": z + 3})
    close(got["divergence"], 0)
    close(got["z"], 0)


@settings(deadline=None, max_examples=25)
@given(
    seeds,
    st.sampled_from([(3,), (2, 4), (2, 3, 4)]),
    st.sampled_from([0.0, 1.0, 1.5, 2.0, 4.0]),
    st.sampled_from([None, 0.25]),
)
def test_binary_cross_entropy_and_focal_loss_are_those_of_their_formula(
    seed: int, shape: tuple[int, ...], gamma: float, alpha: float | None
) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (2, *shape)).astype(np.float32)
    t = rng.choice([0, 1, 0.3], z.shape).astype(np.float32)

    def formula(at: NDArray[np.float64]) -> float:
        p = 1 / (1 + np.exp(-at))
        right = p * t + (1 - p) * (1 - t)
        values = (1 - right) ** gamma * (np.logaddexp(0, at) - at * t)
        if alpha is not None:
            values = values * (alpha * t + (1 - alpha) * (1 - t))
        return float(values.mean())

    got = run_loss(BinaryCrossEntropy(gamma=gamma, alpha=alpha), {"z": z}, {"targets": t})
    close(got["loss"], formula(z.astype(np.float64)))
    close(got["z"], slope(formula, z))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_binary_losses_of_huge_logits_are_finite(gamma: float) -> None:
    z = np.array([[1e4, -1e4, 1e4, -1e4, 0]], np.float32)
    got = run_loss(BinaryCrossEntropy(gamma=gamma), {"z": z}, {"targets": np.array([[1, 0, 0, 1, 1]], np.float32)})
    assert np.isfinite(got["loss"]) and np.isfinite(got["z"]).all()


@settings(deadline=None, max_examples=20)
@given(seeds, st.sampled_from([0.0, 0.5, 2.0]))
def test_absolute_error_is_smooth_inside_of_beta(seed: int, beta: float) -> None:
    rng = np.random.default_rng(seed)
    y, t = (rng.normal(0, 2, (3, 4)).astype(np.float32) for _ in range(2))

    def formula(at: NDArray[np.float64]) -> float:
        away = np.abs(at - t)
        return float(np.where(away < beta, 0.5 * away**2 / beta, away - beta / 2).mean() if beta else away.mean())

    got = run_loss(AbsoluteError(beta=beta), {"y": y}, {"targets": t})
    close(got["loss"], formula(y.astype(np.float64)))
    close(got["y"], slope(formula, y))


def giou(box: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of boxes [..., 4]; Rezatofighi et al. 2019, algorithm 1."""
    low, high = np.maximum(box[..., :2], truth[..., :2]), np.minimum(box[..., 2:], truth[..., 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    union = (box[..., 2:] - box[..., :2]).prod(-1) + (truth[..., 2:] - truth[..., :2]).prod(-1) - shared
    around = (np.maximum(box[..., 2:], truth[..., 2:]) - np.minimum(box[..., :2], truth[..., :2])).prod(-1)
    return np.asarray(shared / union - (around - union) / around)


def boxes(rng: np.random.Generator, count: int, number: int) -> NDArray[np.float32]:
    low, side = rng.uniform(0, 5, (count, number, 2)), rng.uniform(0.5, 4, (count, number, 2))
    return np.concatenate([low, low + side], axis=2).astype(np.float32)


@settings(deadline=None, max_examples=12)
@given(seeds, st.integers(1, 3), st.sampled_from([1, 4]))
def test_generalised_iou_and_its_gradient_are_those_of_its_formula(seed: int, count: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    box, truth = boxes(rng, count, number), boxes(rng, count, number)
    counts = rng.integers(0, 2, (count, number)).astype(np.float32)

    def formula(at: NDArray[np.float64]) -> float:
        return float(((1 - giou(at, truth.astype(np.float64))) * counts).sum() / max(1, counts.sum()))

    got = run_loss(GeneralisedIou(), {"box": box}, {"boxes": truth, "counts": counts})
    close(got["loss"], formula(box.astype(np.float64)))
    close(got["box"], slope(formula, box))


def test_boxes_without_a_size_or_turned_inside_out_give_finite_gradients() -> None:
    box = np.array([[[0, 0, 0, 0], [3, 3, 1, 1], [0, 0, 1, 1]]], np.float32)
    truth = np.array([[[0, 0, 0, 0], [0, 0, 4, 4], [0, 0, 1, 1]]], np.float32)
    got = run_loss(GeneralisedIou(), {"box": box}, {"boxes": truth, "counts": np.ones((1, 3), np.float32)})
    assert np.isfinite(got["loss"]) and np.isfinite(got["box"]).all()
    close(got["box"][0, 2], 0)


def centre_case(seed: int) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(seed)
    shape = (2, 3, 4, 5)
    heat = rng.uniform(0, 0.95, shape).astype(np.float32)
    centres = np.zeros((2, 1, 4, 5), np.float32)
    for row, column in ((0, 1), (2, 3)):
        centres[:, 0, row, column] = 1
        heat[:, rng.integers(3), row, column] = 1
    outputs = {
        "heat": rng.normal(0, 2, shape).astype(np.float32),
        "size": rng.uniform(0.5, 3, (2, 2, 4, 5)).astype(np.float32),
        "offset": rng.uniform(0, 1, (2, 2, 4, 5)).astype(np.float32),
    }
    fed = {
        "heat_target": heat,
        "size_target": rng.uniform(0.5, 3, (2, 2, 4, 5)).astype(np.float32),
        "offset_target": rng.uniform(0, 1, (2, 2, 4, 5)).astype(np.float32),
        "centres": centres,
    }
    return outputs, fed


@settings(deadline=None, max_examples=6)
@given(seeds, st.sampled_from(["l1", "giou"]))
def test_the_centre_point_loss_and_its_gradients_are_those_of_its_formula(seed: int, box: Any) -> None:
    outputs, fed = centre_case(seed)
    count = fed["centres"].sum()

    def formula(heat: NDArray[Any], size: NDArray[Any], offset: NDArray[Any]) -> float:
        p, t = 1 / (1 + np.exp(-heat)), fed["heat_target"].astype(np.float64)
        spots = np.where(t == 1, -((1 - p) ** 2) * np.log(p), -((1 - t) ** 4) * p**2 * np.log(1 - p))
        if box == "l1":
            frames = np.abs(size - fed["size_target"]).sum(axis=1, keepdims=True)
        else:
            edges = [
                np.stack(
                    [o[:, 0] - s[:, 0] / 2, o[:, 1] - s[:, 1] / 2, o[:, 0] + s[:, 0] / 2, o[:, 1] + s[:, 1] / 2], -1
                )
                for o, s in ((offset, size), (fed["offset_target"], fed["size_target"]))
            ]
            frames = 1 - giou(edges[0], edges[1])[:, np.newaxis]
        away = np.abs(offset - fed["offset_target"]).sum(axis=1, keepdims=True)
        total = spots.sum() + (0.1 * frames * fed["centres"]).sum() + (away * fed["centres"]).sum()
        return float(total / count)

    got = run_loss(CentrePointLoss(box=box), outputs, fed)
    wide = {name: array.astype(np.float64) for name, array in outputs.items()}
    close(got["loss"], formula(**wide))
    for name in outputs:
        close(got[name], slope(lambda at, name=name: formula(**{**wide, name: at}), outputs[name]))


def test_a_picture_without_an_object_only_lowers_the_heat_map() -> None:
    outputs, fed = centre_case(3)
    fed = {name: np.zeros_like(array) for name, array in fed.items()}
    got = run_loss(CentrePointLoss(), outputs, fed)
    assert (got["heat"] > 0).all()
    close(got["size"], 0)
    close(got["offset"], 0)


def test_a_loss_says_which_outputs_there_are() -> None:
    builder = GraphBuilder()
    outputs = {"a": builder.input("a", ("N", 3)), "b": builder.input("b", ("N", 2, 2))}
    with pytest.raises(AutodiffError, match=r"which of the model's outputs.*a \['N', 3\], b"):
        CrossEntropy().emit(builder, outputs)
    with pytest.raises(AutodiffError, match='no output "logits"; it has a'):
        CrossEntropy(output="logits").emit(builder, outputs)
    with pytest.raises(AutodiffError, match='2 axes; the output "b"'):
        CrossEntropy(output="b").emit(builder, outputs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrossEntropy(smoothing=1.0),
        lambda: Distillation(share=0.0),
        lambda: Distillation(temperature=0.0),
        lambda: BinaryCrossEntropy(gamma=0.5),
        lambda: BinaryCrossEntropy(alpha=1.0),
        lambda: AbsoluteError(beta=-1.0),
    ],
)
def test_numbers_outside_of_their_range_are_refused(make: Any) -> None:
    with pytest.raises(AutodiffError):
        make()
