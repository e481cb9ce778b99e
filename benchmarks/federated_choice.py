"""Which settings solar cells are learned with: by folds of the cells that teach. No cell of the test is looked at.

    EDGED_REAL_DATA=... python -m benchmarks.federated_choice [--seeds N] [--json FILE] [NAME ...]

Every cell that teaches judges once, in the fold whose models were not taught by it. A line is one setting: for a model
of all cells (`single-...`), a model of each factory (`alone-...`), or devices together (`devices-...`, nothing masked).
F1 is that of `defect` over all folds, mean and standard deviation over the seeds; `precision` the mean average
precision, which no threshold disturbs; `loss` the mean cross entropy. First convolutions are those of a bare boards'
model of the same seed. One CPU, one thread.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.federated import SETTINGS, Product, Setting
from benchmarks.federated_data import folded, load
from benchmarks.federated_round import federated, together
from benchmarks.federated_site import PLAN, Site, Tensors
from benchmarks.pictures import data_root

FOLDS = 3
COLUMNS = ["setting", "f1_mean", "f1_spread", "precision", "loss", "seeds"]
Scores = list[tuple[int, float]]
"""Of each picture: whether it is defective, and the logarithm of the odds that the model gives for that."""


@dataclass(frozen=True)
class Candidate:
    """What differs from SETTINGS."""

    change: Callable[[Setting], Setting]
    who: Literal["single", "alone", "devices"]


def single(*, shown: int | None = None, alone: bool = False, **local: Any) -> Candidate:
    """Of a model of all pictures; `alone`: of one of each factory."""

    def change(setting: Setting) -> Setting:
        return replace(setting, shown=shown or setting.shown, single=msgspec.structs.replace(setting.single, **local))

    return Candidate(change, "alone" if alone else "single")


def devices(*, rounds: int | None = None, personal: Sequence[str] | None = None, strategy: Any = None,
            **local: Any) -> Candidate:  # fmt: skip
    """Of devices together."""

    def change(setting: Setting) -> Setting:
        plan = setting.plan
        if personal is not None:
            plan = msgspec.structs.replace(plan, personal=tuple(personal))
        if strategy is not None:
            plan = msgspec.structs.replace(plan, strategy=strategy)
        return replace(
            setting, rounds=rounds or setting.rounds, plan=plan, local=msgspec.structs.replace(setting.local, **local)
        )

    return Candidate(change, "devices")


CANDIDATES: Mapping[str, Candidate] = {
    "single-250x16-1e-2": single(),
    "alone-250x16-1e-2": single(alone=True),
    "single-250x16-3e-3": single(learning_rate=0.003),
    "single-250x16-1e-2-top": single(trainable=r"stage[34]|head"),
    "devices-125x8-3e-2": devices(rounds=125, steps=1, batch=8, learning_rate=0.03, warm_up=12),
    "devices-250x4-2e-2": devices(rounds=250, steps=1, batch=4, learning_rate=0.02, warm_up=25),
    "devices-250x4-1e-2": devices(rounds=250, steps=1, batch=4, learning_rate=0.01, warm_up=25),
    "devices-85x3x4-1e-2": devices(rounds=85, steps=3, batch=4, learning_rate=0.01, warm_up=8),
    "devices-250x4-1e-2-own-head": devices(
        rounds=250, steps=1, batch=4, learning_rate=0.01, warm_up=25, personal=("head.*", *PLAN.personal)
    ),
    "devices-250x4-1e-2-top": devices(
        rounds=250, steps=1, batch=4, learning_rate=0.01, warm_up=25, trainable=r"stage[34]|head"
    ),
}
"""By rounds (or steps of one site) x steps of a round x pictures of a step, then the highest learning rate."""


def scores(product: Product, candidate: Candidate, folder: Path, seed: int, base: Tensors) -> Scores:
    """Of the pictures that judge in one fold, by models that were taught by the others."""
    setting, factories = product.setting, product.factories
    if candidate.who == "devices":
        machine = product.machine(folder, setting.local, seed, base, plan=setting.plan)
        sites = product.devices(machine, 1000 * seed)
        shared = federated(machine, sites, rounds=setting.rounds, looks=1, cohort=None).weights
        return [one for site in sites for one in judged(site, shared)]
    machine, found = product.machine(folder, setting.single, seed, base), []
    everything = sum(not one.judges for one in factories.samples)
    for names in [factories.names] if candidate.who == "single" else [(name,) for name in factories.names]:
        teach, judge = ([one for name in names for one in factories.of(name, judges=side)] for side in (False, True))
        site = Site(machine, teach, judge, seed=1000 * seed + 200)
        shared = together(machine, site, round(setting.shown * len(teach) / everything), 1).weights
        found += judged(site, shared)
    return found


def judged(site: Site, shared: Tensors) -> Scores:
    """What a model of two labels says of a site's pictures."""
    return [(int(truth), float(said[1] - said[0])) for truth, said in site.scored(shared)]


def figures(found: Scores) -> tuple[float, float, float]:
    """(F1, average precision, cross entropy) of two labels."""
    truth, odds = np.array([one[0] for one in found]), np.array([one[1] for one in found])
    hits = int((truth * (odds > 0)).sum())
    f1 = 2 * hits / max(1, int(truth.sum() + (odds > 0).sum()))
    loss = np.logaddexp(0, np.where(truth == 1, -odds, odds)).mean()
    return f1, average_precision(truth, odds), float(loss)


def average_precision(truth: NDArray[Any], odds: NDArray[Any]) -> float:
    """The mean, over the defective ones, of the precision when one is found, most suspicious first."""
    ordered = truth[np.argsort(-odds, kind="stable")]
    places = np.flatnonzero(ordered)
    return float(np.mean(np.arange(1, len(places) + 1) / (places + 1)))


def base_of(seed: int, root: Path, folder: Path) -> Tensors:
    """The bare boards' model of all their pictures."""
    product = Product(load("pcb-bare", root), SETTINGS["pcb-bare"])
    machine = product.machine(folder, product.setting.single, seed, None)
    return product.centralised(machine, 1000 * seed + 200).weights


def main(argv: list[str] | None = None) -> None:
    parser = report.arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2, metavar="N")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CANDIDATES)}")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    root = data_root()
    factories, setting = load("solar-el", root), SETTINGS["solar-el"]
    rows = []
    with tempfile.TemporaryDirectory(prefix="federated-") as folder:
        bases = [base_of(seed, root, Path(folder) / f"base{seed}") for seed in range(options.seeds)]
        for name in options.names or CANDIDATES:
            candidate, found = CANDIDATES[name], []
            for seed, base in enumerate(bases):
                pooled: Scores = []
                for fold in range(FOLDS):
                    product = Product(folded(factories, fold, FOLDS), candidate.change(setting))
                    place = Path(folder) / f"{name}-{seed}-{fold}"
                    pooled += scores(product, candidate, place, seed, base)
                found.append(figures(pooled))
            rows.append(row(name, found))
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)
    print(report.table(rows, COLUMNS))
    report.write_json(options.json, "federated_choice", {"rows": rows}, quick=options.quick)


def row(name: str, found: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """One setting: over the seeds."""
    f1 = [one[0] for one in found]
    return {
        "setting": name,
        "f1_mean": round(statistics.mean(f1), 3),
        "f1_spread": round(statistics.stdev(f1), 3) if len(f1) > 1 else 0.0,
        "precision": round(statistics.mean(one[1] for one in found), 3),
        "loss": round(statistics.mean(one[2] for one in found), 3),
        "seeds": len(found),
    }


if __name__ == "__main__":
    main()
