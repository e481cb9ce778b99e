"""Joint inference on real pictures: a small model on a device, a large one at cloudd, real daemons, real HTTP.

    EDGED_REAL_DATA=... python -m benchmarks.joint [--quick] [--json FILE] [--data pcb-bare,solder-tht]

For each data set both models are trained on the training boards (`benchmarks.train_pair`) and packaged; cloudd gets the
large one, and an edged for each mode of the gate gets the small one. Calibration pictures are sent first, then the test
pictures, all from boards that neither model has seen, in one fixed random order. What the daemons decided is counted;
what the cloud would have said about pictures never sent is computed with the same package by the same code.

Sedna's rules are applied to the edge's probabilities of the same test pictures.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import pictures, report, sedna_rules, train_pair
from benchmarks.daemons import Edge, Fleet
from benchmarks.pictures import Dataset, Item
from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.gates.scores import margins
from edgekit.messages import Decision
from edgekit.packages import Package
from edgekit.vision.classification import Classifier

RISK = {"pcb-bare": 0.03, "solder-tht": 0.02}
BUDGET = {"pcb-bare": 0.3, "solder-tht": 0.1}
CONFIDENCE = 0.9
MODES = ("budget", "risk")

Row = dict[str, Any]

SERVICE = """
name = "{name}"
model = "{edge}"
deadline_ms = 5000

[hard_samples]
mode = "{mode}"
answer_model = "{cloud}"
risk = {risk}
confidence = {confidence}
budget = {budget}
calibration = {calibration}
"""


@dataclass(frozen=True)
class Truth:
    """What is known about the test pictures without any daemon; all arrays have one entry a picture."""

    label: NDArray[np.int64]
    edge: NDArray[np.float32]  # probabilities (n, classes)
    cloud: NDArray[np.float32]

    @property
    def edge_label(self) -> NDArray[np.int64]:
        return np.asarray(self.edge.argmax(axis=1))

    @property
    def cloud_label(self) -> NDArray[np.int64]:
        return np.asarray(self.cloud.argmax(axis=1))


def main() -> None:
    parser = report.arguments("Joint inference of edged and cloudd on real pictures.")
    parser.add_argument("--data", default="solder-tht,pcb-bare", help="data sets, separated by commas")
    args = parser.parse_args()
    names = args.data.split(",")
    # One after the other, so that latencies are those of an unhurried machine; in a hurry side by side.
    with ThreadPoolExecutor(len(names) if args.quick else 1) as pool:
        results = list(pool.map(lambda name: _measure(name, args.quick), names))
    for model, cases, rules in results:
        print(
            f"\n{model['data']}: {model['test_items']} test pictures of {model['test_boards']} boards, "
            f"gap between cloud and edge {model['gap_points']:.1f} points\n"
        )
        print(report.transposed([_rounded(case) for case in cases], "case"))
        print()
        print(report.table(rules, ["rule", "offload_share", "accuracy", "share_of_cloud_accuracy", "risk"]))
    figures = {
        "cases": [case for _, cases, _ in results for case in cases],
        "rules": [rule for _, _, rules in results for rule in rules],
        "models": [model for model, _, _ in results],
    }
    report.write_json(args.json, "joint", figures, quick=args.quick)


def _measure(name: str, quick: bool) -> tuple[Row, list[Row], list[Row]]:
    """The models' row, a row for each case, and a row for each rule of one data set."""
    dataset = pictures.load(name)
    pair = train_pair.pair(dataset, quick=quick)
    truth, calibration, test = _prepare(dataset, pair, quick)
    with tempfile.TemporaryDirectory(prefix="edj-") as folder, Fleet(Path(folder)) as fleet:
        cases = [_case(edge, dataset, pair, mode, truth, calibration, test) for edge, mode in _start(fleet, pair)]
    return {"data": name, **_describe(dataset, pair, truth, calibration, test)}, cases, _compare(dataset, truth)


def _prepare(dataset: Dataset, pair: train_pair.Pair, quick: bool) -> tuple[Truth, list[Item], list[Item]]:
    rng = np.random.default_rng(1)
    calibration = [dataset.calibration[i] for i in rng.permutation(len(dataset.calibration))]
    test = [dataset.test[i] for i in rng.permutation(len(dataset.test))]
    if quick:
        calibration, test = calibration[:150], test[:150]
    truth = Truth(np.array([i.label for i in test]), _probabilities(pair.edge, test), _probabilities(pair.cloud, test))
    return truth, calibration, test


def _probabilities(package: Package, items: list[Item]) -> NDArray[np.float32]:
    classifier = Classifier.load(package)
    try:
        return np.stack([classifier.classify(item.data).probabilities for item in items])
    finally:
        classifier.close()


def _describe(dataset: Dataset, pair: train_pair.Pair, truth: Truth, calibration: list[Item], test: list[Item]) -> Row:
    """The models, the splits, and the gap that sets how much has to be offloaded."""
    edge, cloud = _accuracy(truth.edge_label, truth), _accuracy(truth.cloud_label, truth)
    return {
        "gap_points": 100 * (cloud - edge),
        "edge_parameters": pair.training["edge"]["parameters"],
        "cloud_parameters": pair.training["cloud"]["parameters"],
        "training_cpu_s": pair.training["edge"]["cpu_s"] + pair.training["cloud"]["cpu_s"],
        "train_items": len(dataset.train_x),
        "calibration_items": len(calibration),
        "calibration_boards": len({i.board for i in calibration}),
        "test_items": len(test),
        "test_boards": len({i.board for i in test}),
        "differing_share": float(np.mean(truth.edge_label != truth.cloud_label)),
    }


def _start(fleet: Fleet, pair: train_pair.Pair) -> list[tuple[Edge, str]]:
    """A cloudd with the large model, and a joined edged with the small one for each mode."""
    cloud = fleet.start_cloud(flags=["--heartbeat", "1"])
    cloud.add_model(pair.cloud.root)
    with ThreadPoolExecutor(len(MODES)) as pool:
        edges = list(pool.map(fleet.start_edge, MODES))
    for edge in edges:
        edge.join(cloud)
        edge.add_model(pair.edge.root)
    return list(zip(edges, MODES, strict=True))


def _case(
    edge: Edge,
    dataset: Dataset,
    pair: train_pair.Pair,
    mode: str,
    truth: Truth,
    calibration: list[Item],
    test: list[Item],
) -> Row:
    name = f"{dataset.name}-{mode}"
    edge.add_service(
        SERVICE.format(
            name=name,
            edge=pair.edge.ref,
            cloud=pair.cloud.ref,
            mode=mode,
            risk=RISK[dataset.name],
            confidence=CONFIDENCE,
            budget=BUDGET[dataset.name],
            calibration=len(calibration),
        )
    )
    for item in calibration:
        edge.inspect(name, item.data)
    if mode == "risk":
        edge.wait_for(lambda: "missing" not in edge.service(name).report.gate, "to finish its calibration")
    gate = edge.service(name).report.gate
    before = _uplink_bytes(edge)
    decisions: list[Decision] = []
    latencies_ms: list[float] = []
    for item in test:
        began = time.perf_counter()
        decisions.append(edge.inspect(name, item.data))
        latencies_ms.append((time.perf_counter() - began) * 1e3)
    figures = _figures(dataset, mode, truth, decisions, np.array(latencies_ms))
    return {
        "case": f"{dataset.name} {mode}",
        **figures,
        "uplink_bytes_per_sample": (_uplink_bytes(edge) - before) / len(test),
        "calibrated": gate,
        "gate": edge.service(name).report.gate,
    }


def _uplink_bytes(edge: Edge) -> int:
    """Bytes sent to cloudd, once they have come to rest: audits leave in the background, reports come each second."""
    last, until = -1, time.monotonic()
    while (now := edge.status().worker.uplink_bytes) != last or time.monotonic() < until:
        if now != last:
            last, until = now, time.monotonic() + 1.3
        time.sleep(0.1)
    return last


def _figures(
    dataset: Dataset, mode: str, truth: Truth, decisions: list[Decision], latencies_ms: NDArray[np.float64]
) -> Row:
    index = {label: i for i, label in enumerate(dataset.labels)}
    joint = np.array([index[d.label] for d in decisions])
    edge = np.array([index[d.edge.label] for d in decisions])
    local = np.array([d.decided != "cloud" for d in decisions])
    sent = np.array([d.sent is not None for d in decisions])
    cloud = truth.cloud_label
    wrong = [d for d, c in zip(decisions, cloud, strict=True) if d.cloud is not None and index[d.cloud.label] != c]
    if wrong:
        raise SystemExit(f"cloudd answered {len(wrong)} pictures otherwise than its model does here: {wrong[0]}")
    n, differing = len(decisions), int((local & (edge != cloud)).sum())
    quiet = latencies_ms[~sent] if (~sent).any() else np.array([np.nan])
    figures: Row = {
        "edge_accuracy": _accuracy(edge, truth),
        "cloud_accuracy": _accuracy(cloud, truth),
        "joint_accuracy": _accuracy(joint, truth),
        "offload_share": float(sent.mean()),
        "share_of_cloud_accuracy": _accuracy(joint, truth) / _accuracy(cloud, truth),
        "risk_target": RISK[dataset.name] if mode == "risk" else None,
        "risk_measured": differing / n,
        "risk_measured_upper": clopper_pearson_upper(differing, n, 1 - CONFIDENCE),
        "audit_share": float(np.mean([d.sent == "audit" for d in decisions])),
        "degraded_share": float(np.mean([d.decided == "edge-degraded" for d in decisions])),
        "edge_p50_ms": float(np.percentile(quiet, 50)),
        "edge_p99_ms": float(np.percentile(quiet, 99)),
        "gap_points": 100 * (_accuracy(cloud, truth) - _accuracy(edge, truth)),
    }
    if dataset.defect is not None:
        for who, answers in (("edge", edge), ("cloud", cloud), ("joint", joint)):
            figures.update({f"{who}_{k}": v for k, v in _defects(answers, truth, index[dataset.defect]).items()})
    return figures


def _accuracy(answers: NDArray[Any], truth: Truth) -> float:
    return float(np.mean(answers == truth.label))


def _defects(answers: NDArray[Any], truth: Truth, defect: int) -> dict[str, float | None]:
    """Recall and F1 of the defect; escape: share of defects passed as good; overkill: share of good ones refused."""
    said, is_one = answers == defect, truth.label == defect
    hits = int((said & is_one).sum())
    recall = hits / is_one.sum()
    overkill = (said & ~is_one).sum() / (~is_one).sum()
    f1 = 2 * hits / (said.sum() + is_one.sum())
    return {"recall": float(recall), "f1": float(f1), "escape": float(1 - recall), "overkill": float(overkill)}


def _compare(dataset: Dataset, truth: Truth) -> list[Row]:
    """Sedna's rules, the margin at fixed shares, and the smallest share with 99 % of the cloud's accuracy."""
    hardness = 1 - margins(truth.edge)
    order = np.argsort(-hardness, kind="stable")
    rows = [_rule(dataset, name, rule(truth.edge), truth) for name, rule in sedna_rules.RULES.items()]
    for share in (0.1, 0.2, 0.3, 0.4):
        hard = np.zeros(len(hardness), bool)
        hard[order[: round(share * len(order))]] = True
        rows.append(_rule(dataset, f"margin, {share:.0%}", hard, truth))
    gains = (truth.cloud_label == truth.label).astype(int) - (truth.edge_label == truth.label)
    reached = np.mean(truth.edge_label == truth.label) + np.r_[0, np.cumsum(gains[order])] / len(order)
    enough = np.flatnonzero(reached >= 0.99 * _accuracy(truth.cloud_label, truth))
    if len(enough):
        hard = np.zeros(len(hardness), bool)
        hard[order[: enough[0]]] = True
        rows.append(_rule(dataset, "margin, smallest share for 99 %", hard, truth))
    return rows


def _rule(dataset: Dataset, name: str, hard: NDArray[np.bool_], truth: Truth) -> Row:
    joint = np.where(hard, truth.cloud_label, truth.edge_label)
    row: Row = {
        "data": dataset.name,
        "rule": name,
        "offload_share": float(hard.mean()),
        "accuracy": _accuracy(joint, truth),
        "share_of_cloud_accuracy": _accuracy(joint, truth) / _accuracy(truth.cloud_label, truth),
        "risk": float(np.mean(~hard & (truth.edge_label != truth.cloud_label))),
    }
    if dataset.defect is not None:
        row |= _defects(joint, truth, dataset.labels.index(dataset.defect))
    return row


def _rounded(case: Row) -> Row:
    """For the table: the sentences of the gate are long and stand in the JSON."""
    return {key: value for key, value in case.items() if key not in ("calibrated", "gate")}


if __name__ == "__main__":
    main()
