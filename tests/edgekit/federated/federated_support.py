"""Sums without masks, sites whose data differ, and local training, for the tests of this room."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.federated.strategy import Contribution, LocalResult, LocalTerm
from edgekit.federated.sums import RoundNumbers, Sum
from edgekit.secagg import fixedpoint, masks
from edgekit.secagg.messages import RoundConfig


def round_config(numbers: RoundNumbers, invited: int, bits: int = 32, **changes: Any) -> RoundConfig:
    values: dict[str, Any] = {
        "session": bytes(16),
        "round": 1,
        "invited": invited,
        "colluders": invited // 3,
        "parameters": 1,
        "clip": 1.0,
        "limit": 1.0,
        "max_weight": 1,
        "bits": bits,
        "prg": "aes-256-ctr",
        "model": bytes(32),
        "rosters": bytes(32),
    }
    return numbers.put_into(RoundConfig(**values | changes))


def summed(contributions: Sequence[Contribution[Any]], numbers: RoundNumbers, bits: int = 32) -> Sum:
    """What cloudd publishes, without the masks: the same words, as the masked rounds' tests show."""
    config = round_config(numbers, numbers.room.invited if numbers.room else max(3, len(contributions)), bits)
    encoding = fixedpoint.Encoding(config)
    words = np.zeros(encoding.words, masks.dtype(bits))
    for one in contributions:
        words += fixedpoint.encode(one.vector, one.weight, encoding, secrets.token_bytes)
    return Sum.of_words(words, len(contributions), config)


@dataclass(frozen=True)
class Site:
    features: NDArray[np.float64]  # the last one is 1
    classes: NDArray[np.int64]


def skewed_sites(
    count: int, *, alpha: float, seed: int, samples: int = 60, features: int = 6, classes: int = 3
) -> list[Site]:
    """Gaussian classes; each site's shares of them are Dirichlet(alpha), and its camera shifts all features."""
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.standard_normal((classes, features))
    sites = []
    for _ in range(count):
        index = rng.choice(classes, samples, p=rng.dirichlet(np.full(classes, alpha)))
        values = centres[index] + rng.standard_normal((samples, features)) + 0.5 * rng.standard_normal(features)
        sites.append(Site(np.hstack([values, np.ones((samples, 1))]), index))
    return sites


def loss_and_gradient(model: NDArray[Any], sites: Sequence[Site], ridge: float = 0.01) -> tuple[float, NDArray[Any]]:
    """Mean over the sites of the softmax regression's loss with a ridge, and its gradient."""
    total, gradient = 0.0, np.zeros(model.size)
    for site in sites:
        weight = model.reshape(-1, site.features.shape[1]).astype(np.float64)
        logits = site.features @ weight.T
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = powers / powers.sum(axis=1, keepdims=True)
        rows = np.arange(len(site.classes))
        total -= float(np.log(shares[rows, site.classes]).mean())
        shares[rows, site.classes] -= 1
        gradient += (shares.T @ site.features / len(rows)).ravel()
    gradient = gradient / len(sites) + ridge * model
    return total / len(sites) + ridge / 2 * float(model @ model), gradient


def optimum(sites: Sequence[Site], size: int) -> float:
    """The least loss of all sites' data in one place, by gradient descent until hardly anything moves."""
    model = np.zeros(size)
    for _ in range(1500):
        gradient = loss_and_gradient(model, sites)[1]
        if float(np.abs(gradient).max()) < 1e-4:
            break
        model -= 0.5 * gradient
    return loss_and_gradient(model, sites)[0]


def trained(site: Site, term: LocalTerm, steps: int, rate: float) -> LocalResult:
    """Full gradients of one site's loss and what the strategy adds to them."""
    model = term.anchor.copy()
    for _ in range(steps):
        gradient = loss_and_gradient(model, [site])[1].astype(np.float32) + term.gradient(model)
        model -= np.float32(rate) * gradient
    return LocalResult(model - term.anchor, len(site.classes), steps, rate)
