"""Factories that learn together without showing each other a picture: each alone, federated, all in one place.

    EDGED_REAL_DATA=... python -m benchmarks.federated [--quick] [--json FILE] [--plot FILE] [--seeds N] [PRODUCT ...]

Three products, and factories whose pictures differ: joints by the shape of their pad (`solder-tht`), solar cells by
their crystal (`solar-el`), patches of bare boards by the group of boards (`pcb-bare`). The pictures of a factory lie on
two or three devices, whole boards on each, so that a cohort has as many devices as the default policy asks for. Every
model is a small network, trained by the real train step with AdamW, whose moments stay on the device. Running
statistics of BatchNormalization stay there, too, and a device judges with them the test boards of its own factory. The
figures are those of all test boards together, of a masked federation out of a masked sum themselves. The last weights
count. A federation may be shown more pictures than one site, because its devices work at the same time (SETTINGS).

    alone-FACTORY             from its own pictures only, judged by its own boards, if there is a defect among them
    alone                     all of these together: what there is without a federation
    federated-plain           means of updates, nothing hidden
    federated-secagg          `secagg/2`: real state machines, every message as bytes
    federated-secagg-dp       one round of the head alone with distributed noise, on convolutions of another product
    centralised               all pictures in one place

F1 is that of `defect`, for bare boards the mean of all labels. `f1_mean` is the mean over the seeds, `f1_spread` their
standard deviation. A seed decides initial weights, order and augmentation; keys and noise are fresh in each run.
`gap_to_centralised`: F1 of the centralised model less that of the masked federation (the goal: at most 0.02);
`secagg_minus_plain`: of the masked federation less the plain one; `code_error`: by how many codes a masked sum differed
from the sum of what went in, at most (half a code a device is what rounding does). One CPU, one thread.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np

from benchmarks import report
from benchmarks.federated_data import Factories, Name, deal, load
from benchmarks.federated_plot import Panel, picture
from benchmarks.federated_round import DELTA, Cohort, Course, federated, together
from benchmarks.federated_site import LOCAL, PLAN, Confusion, Machine, Network, Site, Tensors
from benchmarks.pictures import data_root
from edgekit.architectures import Spec, input_spec
from edgekit.federated.averaging import FedAvg
from edgekit.federated.evaluation import Figures
from edgekit.federated.plan import Plan
from edgekit.federated.privacy import Privacy, noise_multiplier
from edgekit.federated.sums import Room
from edgekit.messages.federation import LocalTraining
from edgekit.vision.images import decode, encode_png
from edgekit.vision.preprocess import fit, reduced_size

GOAL_GAP = 0.02
SEEDS = 5
COLUMNS = ["case", "f1_mean", "f1_spread", "f1_min", "f1_max", "seeds", "epsilon"]
BY_PRODUCT = ("gap_to_centralised", "secagg_minus_plain", "gain_over_alone")
CURVES = ("centralised", "alone", "federated-plain", "federated-secagg")


@dataclass(frozen=True)
class Private:
    """The federation with noise: convolutions of another product that stay, and only the head is shared."""

    base: Name  # the product whose centralised model gives the convolutions
    steps: int  # of a device in a round
    peak: float
    batch: int = 4
    rounds: int = 1
    epsilon: float = 8.0
    clip: float = 1.0

    def plan(self, devices: int, classes: int, features: int) -> Plan:
        """With the least noise that keeps a device within epsilon."""
        parameters = classes * (features + 1)
        z = noise_multiplier(
            self.epsilon, DELTA, self.rounds, parameters=parameters, clip=self.clip, room=Room(invited=devices)
        )
        privacy = Privacy(noise_multiplier=z)
        return Plan(strategy=FedAvg(clip=self.clip), personal=("*.norm.*",), privacy=privacy)


@dataclass(frozen=True)
class Setting:
    """How one product is learned, in words of a job: chosen by `benchmarks.federated_choice`."""

    network: Network
    single: LocalTraining  # of a model that one site trains, all pictures or those of a factory
    shown: int  # pictures, to the model of all pictures; to that of a factory as many of each picture
    devices: int  # of a factory
    local: LocalTraining  # of a device
    rounds: int
    private: Private
    plan: Plan = PLAN
    base: Name | None = None  # a product whose centralised model gives the first convolutions of every model
    looks: int = 10

    @property
    def bases(self) -> tuple[Name, ...]:
        """Products of whose models something is needed."""
        return (self.private.base, *((self.base,) if self.base else ()))

    def quick(self) -> Setting:
        """Less of everything."""
        private = replace(self.private, steps=10)
        return replace(self, shown=1200, rounds=10, looks=5, private=private)


_TURNED = msgspec.structs.replace(LOCAL, symmetry="any")

SETTINGS: Mapping[Name, Setting] = {
    "pcb-bare": Setting(
        network=Network(side=32),
        single=msgspec.structs.replace(_TURNED, batch=16, learning_rate=0.03, balance="root"),
        shown=18000,
        devices=2,
        local=msgspec.structs.replace(_TURNED, steps=5, batch=4, learning_rate=0.06, warm_up=10, balance="root"),
        rounds=200,
        private=Private("solder-tht", steps=187, peak=0.03),
    ),
    "solder-tht": Setting(
        network=Network(side=48),
        single=msgspec.structs.replace(LOCAL, batch=16, learning_rate=0.01, balance="root"),
        shown=11000,
        devices=2,
        local=msgspec.structs.replace(LOCAL, steps=5, batch=4, learning_rate=0.02, warm_up=10, balance="root"),
        rounds=92,
        private=Private("pcb-bare", steps=83, peak=0.02),
    ),
    "solar-el": Setting(
        network=Network(side=64),
        single=msgspec.structs.replace(_TURNED, batch=16, learning_rate=0.01, balance="full"),
        shown=4000,
        devices=3,
        local=msgspec.structs.replace(_TURNED, steps=1, batch=4, learning_rate=0.01, warm_up=25, balance="full"),
        rounds=250,
        private=Private("pcb-bare", steps=41, batch=8, peak=0.02),
        base="pcb-bare",
    ),
}


class Product:
    """One product with its pictures at the size of the input, and the sites that hold them."""

    def __init__(self, factories: Factories, setting: Setting) -> None:
        self.setting, self.factories = setting, shrunk(factories, setting.network)

    def machine(self, folder: Path, local: LocalTraining, seed: int, base: Tensors | None, **other: Any) -> Machine:
        """The network of this seed, or with the convolutions of `base`, and a step for this training."""
        classes = len(self.factories.labels)
        return Machine(folder, self.setting.network, local, classes, seed, base=base, **other)

    def devices(self, machine: Machine, seed: int) -> list[Site]:
        """Those of all factories, each with its part of the factory's boards that teach, and of those that judge."""
        found: list[Site] = []
        for factory in self.factories.names:
            parts = (deal(self.factories.of(factory, judges=judges), self.setting.devices) for judges in (False, True))
            for teach, judge in zip(*parts, strict=True):
                found.append(Site(machine, teach, judge, seed=seed + len(found)))
        return found

    def alone(self, machine: Machine, factory: str, seed: int) -> Course:
        """One factory: as many epochs of its pictures as the centralised model is shown."""
        teach, judge = (self.factories.of(factory, judges=judges) for judges in (False, True))
        everything = sum(not one.judges for one in self.factories.samples)
        shown = round(self.setting.shown * len(teach) / everything)
        return together(machine, Site(machine, teach, judge, seed=seed), shown, self.setting.looks)

    def centralised(self, machine: Machine, seed: int) -> Course:
        """All pictures in one place."""
        teach, judge = (
            [one for factory in self.factories.names for one in self.factories.of(factory, judges=judges)]
            for judges in (False, True)
        )
        return together(machine, Site(machine, teach, judge, seed=seed), self.setting.shown, self.setting.looks)

    def federated(self, machine: Machine, seed: int, *, masked: bool) -> Course:
        """All devices, with or without masks."""
        sites, setting = self.devices(machine, seed), self.setting
        cohort = Cohort(len(sites)) if masked else None
        return federated(machine, sites, rounds=setting.rounds, looks=setting.looks, cohort=cohort)

    def private(self, folder: Path, seed: int, base: Tensors) -> Course:
        """All devices with masks and noise: of the head alone, on the convolutions of `base`."""
        private, local = self.setting.private, self.setting.local
        local = msgspec.structs.replace(
            local,
            steps=private.steps,
            batch=private.batch,
            learning_rate=private.peak,
            warm_up=0,
            trainable=r"\.norm\.|^head\.",
        )
        classes, features = len(self.factories.labels), base["head.linear.weight"].shape[1]
        plan = private.plan(len(self.factories.names) * self.setting.devices, classes, features)
        machine = self.machine(folder, local, seed, base, plan=plan)
        sites = self.devices(machine, 1000 * seed)
        return federated(machine, sites, rounds=private.rounds, looks=private.rounds, cohort=Cohort(len(sites)))


def shrunk(factories: Factories, network: Network) -> Factories:
    """The pictures at the size of the input, as serving would see them."""
    spec = input_spec(Spec(architecture="tiny_cnn", classes=2, input_width=network.side, input_height=network.side,
                           channels=1))  # fmt: skip
    samples = [
        replace(one, data=encode_png(fit(decode(one.data, "grey", reduce_to=reduced_size(spec)), spec)))
        for one in factories.samples
    ]
    return replace(factories, samples=tuple(samples))


def f1(confusion: Confusion, defect: int | None) -> float:
    """Of the label `defect`; None: the mean of all labels that occur or are said."""
    labels = tuple(map(str, range(len(confusion))))
    found = Figures(labels, confusion, 0.0, 1).f1
    value = np.nanmean(found) if defect is None else found[defect]
    return float(np.nan_to_num(value))


def row(product: Product, kind: str, seed: int, course: Course) -> dict[str, Any]:
    """What one training came to."""
    defect = product.factories.defect
    return {
        "case": f"{product.factories.name}/{kind}",
        "seed": seed,
        "f1": f1(course.last, defect),
        "curve": [[shown, f1(confusion, defect)] for shown, confusion in course.looks],
        "epsilon": course.epsilon,
        "code_error": course.code_error,
    }


def pooled(courses: Sequence[Course]) -> Course:
    """The judgements of models that were trained apart, at the same looks, as if one had made them."""
    looks = [
        (sum(shown for shown, _ in at), np.sum([confusion for _, confusion in at], axis=0))
        for at in zip(*(course.looks for course in courses), strict=True)
    ]
    return Course(looks)


def learned(product: Product, seed: int, folder: Path, base: Tensors | None) -> Iterator[tuple[dict[str, Any], Course]]:
    """All that one seed trains without noise, as rows; the centralised model comes last."""
    setting, first = product.setting, 1000 * seed
    machine = product.machine(folder / "single", setting.single, seed, base)
    device = product.machine(folder / "device", setting.local, seed, base, plan=setting.plan)
    alone = []
    for number, factory in enumerate(product.factories.names):
        alone.append(product.alone(machine, factory, first + 100 + number))
        defect = product.factories.defect
        if defect is None or alone[-1].last[defect].any():
            yield row(product, f"alone-{factory}", seed, alone[-1]), alone[-1]
    together = pooled(alone)
    yield row(product, "alone", seed, together), together
    for kind, masked in (("federated-plain", False), ("federated-secagg", True)):
        course = product.federated(device, first, masked=masked)
        yield row(product, kind, seed, course), course
    course = product.centralised(machine, first + 200)
    yield row(product, "centralised", seed, course), course


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One case a row: mean, standard deviation and range of F1 over the seeds."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for one in rows:
        cases.setdefault(one["case"], []).append(one)
    return [
        {
            "case": case,
            "f1_mean": statistics.mean(scores := [one["f1"] for one in own]),
            "f1_spread": statistics.stdev(scores) if len(scores) > 1 else 0.0,
            "f1_min": min(scores),
            "f1_max": max(scores),
            "seeds": len(scores),
            "epsilon": max((one["epsilon"] for one in own if one["epsilon"] is not None), default=None),
        }
        for case, own in cases.items()
    ]


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By product: what federation and masks cost, and whether the goal is met."""
    found = {one["case"]: one["f1_mean"] for one in summary(rows)}
    names = list(dict.fromkeys(case.split("/")[0] for case in found))
    gap = {name: found[f"{name}/centralised"] - found[f"{name}/federated-secagg"] for name in names}
    return {
        "gap_to_centralised": gap,
        "secagg_minus_plain": {
            name: found[f"{name}/federated-secagg"] - found[f"{name}/federated-plain"] for name in names
        },
        "gain_over_alone": {name: found[f"{name}/federated-secagg"] - found[f"{name}/alone"] for name in names},
        "code_error": max(one["code_error"] for one in rows),
        "gap_met": all(value <= GOAL_GAP for value in gap.values()),
    }


def convergence(rows: Sequence[Mapping[str, Any]]) -> str:
    """The picture of all products."""
    panels = []
    for name in dict.fromkeys(one["case"].split("/")[0] for one in rows):
        lines = {
            kind: [[(x, y) for x, y in one["curve"]] for one in rows if one["case"] == f"{name}/{kind}"]
            for kind in CURVES
        }
        panels.append(Panel(name, {kind: seeds for kind, seeds in lines.items() if seeds}))
    return picture(panels, "pictures shown, on all sites together", "F1")


def main(argv: list[str] | None = None) -> None:
    parser = report.arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the course of F1 as SVG")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"trainings of each kind; {SEEDS}, with --quick 1")
    parser.add_argument("names", nargs="*", metavar="PRODUCT", choices=[*SETTINGS, []], help="all without it")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    root, chosen = data_root(), options.names or list(SETTINGS)
    products = {
        name: Product(load(name, root), setting.quick() if options.quick else setting)
        for name, setting in SETTINGS.items()
        if any(name in (one, *SETTINGS[one].bases) for one in chosen)
    }
    rows: list[dict[str, Any]] = []

    def add(one: dict[str, Any]) -> None:
        rows.append(one)
        print(f"{one['case']} {one['seed']}: {one['f1']:.3f}", file=sys.stderr, flush=True)

    for seed in range(options.seeds or (1 if options.quick else SEEDS)):
        bases: dict[str, Tensors] = {}
        with tempfile.TemporaryDirectory(prefix="federated-") as folder:
            for name, product in products.items():
                base, place = product.setting.base, Path(folder) / name
                first = bases[base] if base else None
                if name not in chosen:  # another one begins with its convolutions
                    machine = product.machine(place, product.setting.single, seed, first)
                    bases[name] = product.centralised(machine, 1000 * seed + 200).weights
                    continue
                for one, course in learned(product, seed, place, first):
                    add(one)
                    bases[name] = course.weights  # the last one is the centralised model's
            for name in chosen:
                product = products[name]
                foreign = bases[product.setting.private.base]
                course = product.private(Path(folder) / f"{name}-dp", seed, foreign)
                add(row(product, "federated-secagg-dp", seed, course))
        written(rows, options.json, options.plot, options.quick)
    print(report.table(summary(rows), COLUMNS))
    found = verdict(rows)
    print()
    print(report.table([{"product": name, **{key: found[key][name] for key in BY_PRODUCT}} for name in chosen]))
    print(f"\ncode_error {found['code_error']:.3g}, gap_met {found['gap_met']}")


def written(rows: Sequence[Mapping[str, Any]], file: Path | None, plot: Path | None, quick: bool) -> None:
    """What is known so far: a run that is stopped keeps the seeds that it has done."""
    figures = {"cases": summary(rows), **verdict(rows), "rows": rows}
    report.write_json(file, "federated", figures, quick=quick)
    if plot is not None:
        plot.write_text(convergence(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
