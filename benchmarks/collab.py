"""Doubtful regions of boards, or whole boards: what reaches the large model's accuracy for how many bytes up?

    EDGED_REAL_DATA=... python -m benchmarks.collab [--quick] [--json FILE]

Real bare boards in tiles (`benchmarks.collab_boards`), a small model on a device and a large one at cloudd, trained on
other boards (`benchmarks.train_pair`), real daemons, mTLS, real HTTP. Devices inspect the same test boards:

regions    a service with `[regions]`: the certified gate asks about single tiles
whole      a service that sends every board: what cloudd answers, and what a whole board costs
budget     a service that sends whole boards by the margin of their answer, as many as this needs (not with --quick)
defective  as `regions`, calibrated on boards with defects and shown such boards only (not with --quick)

Bytes are those of the devices' uplink counters, requests and replies. Image-level rules are swept over the same answers
of both models: of each rule the threshold that costs least among those that reach the accuracy, chosen in hindsight on
the test boards. A board that is asked gets the large model's answer in each of its tiles, and costs its JPEG and what
the counter shows beside it. The best rule is the cheapest of them. All of this favours the image-level rules: the
regions' threshold is certified on other boards, and cloudd answers a whole board with one label. How the rules do with
thresholds from the calibration boards, as the regions have theirs, stands in a table of its own (`..._carried_over`).
Mosaics are coded as WebP once cloudd has said that it takes it; a whole board goes as the camera coded it, a JPEG. What
the rules would cost if the device coded their boards anew like mosaics is counted as well (`..._same_coding`).

Training takes about seven minutes of one processor, once (see `benchmarks.train_pair`). --quick takes the trained
models from the cache and a part of the boards, and ends within 60 s; without them it trains worthless ones in 9 s and
says so.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks import collab_boards, report, train_pair
from benchmarks.collab_boards import CLEAN, PIPELINE, Boards, Frame
from benchmarks.collab_rules import (
    GOAL_ACCURACY,
    Labels,
    Looked,
    Numbers,
    Row,
    mixed,
    region_share,
    verdict,
)
from benchmarks.collab_sweep import Setting, carried_over, defective_only, same_coding, sweep
from benchmarks.daemons import Cloud, Edge, Fleet
from edgekit.messages import Decision
from edgekit.packages import Package
from edgekit.services import HardSamples, Regions, Service, dump_service
from edgekit.vision.classification import Classifier
from edgekit.vision.pipeline import Pipelined, aggregate
from edgekit.vision.pipeline import regions as tiles_of

RISK = 0.005
"""Of the regions. Chosen on the calibration boards: of 0.03, 0.02, 0.015, 0.01, 0.007 and 0.005 the one with which most
of 150 random thirds of them keep 99 % of the cloud's accuracy by the threshold that the other two thirds certify: 77 %,
for 67 and 75 % with 0.01 and 0.007. From 0.006 on nothing stricter keeps more. A third holds 60 defects of six kinds,
so one of them is more than a percent of the accuracy."""
AUDIT_SHARE = 0.005
"""Of the trusted regions, which are 160 a board: most boards have an audit in them. The image-level rules in the tables
pay for none."""
CONFIDENCE = 0.9
_WARM_UP = 50  # frames that budget mode sends before it has a quantile
_REST_S = 1.3  # reports of the uplink's bytes come each second
_PAGE = 200

_RULE_COLUMNS = ["case", "asked", "bytes_a_board", "accuracy", "share_of_cloud"]
_COLUMNS = [
    "case",
    "asked",
    "bytes_a_board",
    "accuracy",
    "share_of_cloud",
    "tile_accuracy",
    "escape_rate",
    "overkill_rate",
    "escape_boards",
    "overkill_boards",
]


def main() -> None:
    args = report.arguments("Regions or whole boards: accuracy and bytes of the uplink.").parse_args()
    setting = prepare(collab_boards.load(), args.quick)
    with tempfile.TemporaryDirectory(prefix="edk-") as folder, Fleet(Path(folder)) as fleet:
        server = fleet.start_cloud(flags=["--heartbeat", "1"])
        server.add_model(setting.pair.cloud.root)
        by_regions = _regions(_device(fleet, "regions", setting.pair), server, setting)
        cost = _whole(_device(fleet, "whole", setting.pair), setting)
        target = min(by_regions["accuracy"], GOAL_ACCURACY * setting.accuracy(setting.cloud.label))
        rules = sweep(setting, cost, target)
        defective = setting.only(lambda one: not one.good)
        narrow = [] if args.quick else [_regions(_device(fleet, "defective", setting.pair), server, defective)]
        by_budget = [] if args.quick else [_budget(_device(fleet, "budget", setting.pair), setting, rules[0]["asked"])]
    everything = np.ones(len(setting.test), bool)
    cases = [
        setting.case("edge alone", setting.edge.label, 0.0, 0.0),
        by_regions,
        *by_budget,
        setting.case("cloud alone", mixed(everything, setting.edge.label, setting.cloud.label), 1.0, cost.mean()),
    ]
    same = sweep(setting, cost, min(by_regions["accuracy"], setting.accuracy(setting.cloud.label)))
    carried = carried_over(setting, cost)
    found = verdict(cases, rules, same, carried)
    found |= same_coding(setting, cost, target, by_regions["bytes_a_board"])
    found["region_share_hindsight"] = region_share(
        setting.edge, setting.cloud.label, setting.truth, GOAL_ACCURACY * setting.accuracy(setting.cloud.label)
    )
    for row in narrow:
        found |= defective_only(defective, cost[[not one.good for one in setting.test]], row)
        cases.append({**row, "case": "regions, defective boards only"})
    training = setting.pair.training
    print(
        f"\n{len(setting.test)} boards of {len(setting.truth[0])} tiles, {sum(one.good for one in setting.test)} of "
        f"them good; small model {training['edge']['parameters']:,} parameters, large one "
        f"{training['cloud']['parameters']:,}\n\nThe gate after calibration: {by_regions['calibrated']}\n"
        f"The gate at the end: {by_regions['gate']}\n"
    )
    if training["cloud"]["seconds"] < train_pair.FULL[collab_boards.NAME][1]["seconds"]:
        print("The models were trained for seconds only, so these figures mean nothing. Run without --quick once.\n")
    print(report.table(cases, _COLUMNS))
    print(f"\nImage-level rules, cheapest threshold for {target:.1%} accuracy:\n")
    print(report.table(rules, _RULE_COLUMNS))
    print("\nThe same rules with the cheapest threshold of the calibration boards:\n")
    print(report.table(carried, _RULE_COLUMNS))
    print("\n" + report.transposed([{"figure": "found", **found}], "figure"))
    report.write_json(
        args.json,
        "collab",
        {**found, "cases": cases, "rules": rules, "carried_over": carried, "models": training},
        quick=args.quick,
    )


def prepare(boards: Boards, quick: bool) -> Setting:
    """The models, and the boards in one fixed random order; with `quick` a part of them."""
    pair = train_pair.pair(boards.models, quick=quick)
    rng = np.random.default_rng(1)
    calibration = [boards.calibration[i] for i in rng.permutation(len(boards.calibration))]
    test = [boards.test[i] for i in rng.permutation(len(boards.test))]
    if quick:
        calibration, test = calibration[:12], test[:12]
    answers = [look(package, frames) for frames in (test, calibration) for package in (pair.edge, pair.cloud)]
    return Setting(pair, boards.labels, calibration, test, *answers)


def look(package: Package, frames: Sequence[Frame]) -> Looked:
    """What a model says to each tile, by the daemons' own code."""
    classifier = Classifier.load(package)
    try:
        tiled = [Pipelined(classifier, PIPELINE).regions(frame.data).answers for frame in frames]
    finally:
        classifier.close()
    whole = [aggregate(answers, PIPELINE.tiles, package.labels) for answers in tiled]
    return Looked(
        label=np.array([[one.index for one in answers] for answers in tiled]),
        score=np.array([[one.score for one in answers] for answers in tiled]),
        margin=np.array([[one.margin for one in answers] for answers in tiled]),
        frame_label=np.array([one.index for one in whole]),
        frame_margin=np.array([one.margin for one in whole]),
    )


# --- daemons ---------------------------------------------------------------------------------------------------------


def service(name: str, pair: train_pair.Pair, hard_samples: HardSamples, regions: Regions | None = None) -> str:
    """The definition of a service of the small model on tiles; cloudd answers with the large one."""
    definition = Service(
        name=name,
        model=pair.edge.ref,
        deadline_ms=60_000,
        pipeline=PIPELINE,
        hard_samples=msgspec.structs.replace(hard_samples, answer_model=pair.cloud.ref),
        regions=regions,
    )
    return dump_service(definition)


def _device(fleet: Fleet, name: str, pair: train_pair.Pair) -> Edge:
    """A joined device with the small model."""
    assert fleet.cloud is not None, "it is started first"
    edge = fleet.start_edge(name)
    edge.join(fleet.cloud)
    edge.add_model(pair.edge.root)
    return edge


def _regions(edge: Edge, cloud: Cloud, setting: Setting) -> Row:
    """Calibrate the gate of the regions, then inspect the test boards."""
    count = len(setting.calibration) * len(setting.truth[0])
    gate = HardSamples(risk=RISK, confidence=CONFIDENCE, calibration=count, audit_share=AUDIT_SHARE)
    edge.add_service(service("regions", setting.pair, gate, Regions(clean=setting.labels[CLEAN], most=256)))
    for frame in setting.calibration:
        edge.inspect("regions", frame.data)
    edge.wait_for(lambda: "missing" not in edge.service("regions").report.gate, "to finish its calibration")
    calibrated = edge.service("regions").report.gate
    decisions, bytes_up = _inspect(edge, "regions", setting.test)
    said, from_cloud = tile_labels(decisions, setting)
    asked = _regions_asked(cloud, {decision.sample_id for decision in decisions})
    return {
        **setting.case("regions", said, asked / said.size, bytes_up / len(decisions)),
        "boards_asked": float(np.mean([decision.sent is not None for decision in decisions])),
        "risk": float(np.mean(~from_cloud & (said != setting.cloud.label))),
        "calibrated": calibrated,
        "gate": edge.service("regions").report.gate,
    }


def tile_labels(decisions: Sequence[Decision], setting: Setting) -> tuple[Labels, NDArray[np.bool_]]:
    """The final label of each tile, and whether it is the cloud's.

    Raises SystemExit if a tile that was answered here got another label than the same model gives here.
    """
    places = {tuple(map(float, box)): i for i, box in enumerate(tiles_of(PIPELINE, *setting.size))}
    index = {label: i for i, label in enumerate(setting.labels)}
    said = np.full(setting.truth.shape, CLEAN)
    from_cloud = np.zeros(setting.truth.shape, bool)
    for row, decision in enumerate(decisions):
        for region in decision.regions:
            tile = places[tuple(map(float, region.box))]
            said[row, tile] = index[region.label]
            from_cloud[row, tile] = region.decided == "cloud"
    differing = (said != setting.edge.label) & ~from_cloud
    if differing.any():
        raise SystemExit(f"the device answered {differing.sum()} tiles otherwise than its model does here")
    return said, from_cloud


def _regions_asked(cloud: Cloud, samples: set[str]) -> int:
    """Regions of these samples that cloudd has answered, audits in the background included."""
    count, before = 0, ""
    while page := cloud.client.get(f"/answers?limit={_PAGE}{before}"):
        count += sum(int(one["regions"]) for one in page if one["sample_id"] in samples)
        before = f"&before={page[-1]['id']}"
    return count


def _whole(edge: Edge, setting: Setting) -> Numbers:
    """Bytes that each test board costs if it is asked whole: its JPEG and what the counter shows beside the JPEGs."""
    edge.add_service(service("whole", setting.pair, HardSamples(mode="filter", filter="CloudOnly")))
    decisions, bytes_up = _inspect(edge, "whole", setting.test)
    for decision, label in zip(decisions, setting.cloud.frame_label, strict=True):
        if decision.decided != "cloud" or decision.label != setting.labels[label]:
            raise SystemExit(f"cloudd answered a board otherwise than its model does here: {decision}")
    sizes = np.array([len(frame.data) for frame in setting.test], float)
    cost: Numbers = sizes + (bytes_up - sizes.sum()) / len(sizes)
    return cost


def _budget(edge: Edge, setting: Setting, share: float) -> Row:
    """One real point of the daemons' own image-level rule: the hardest boards, as many as it needs in the sweep."""
    edge.add_service(service("budget", setting.pair, HardSamples(mode="budget", budget=share)))
    warm_up = [setting.calibration[i % len(setting.calibration)] for i in range(_WARM_UP)]
    for frame in warm_up:
        edge.inspect("budget", frame.data)
    decisions, bytes_up = _inspect(edge, "budget", setting.test)
    answered = np.array([decision.decided == "cloud" for decision in decisions])
    said = mixed(answered, setting.edge.label, setting.cloud.label)
    asked = float(np.mean([decision.sent is not None for decision in decisions]))
    return setting.case("whole boards, budget mode", said, asked, bytes_up / len(decisions))


def _inspect(edge: Edge, service: str, frames: Sequence[Frame]) -> tuple[list[Decision], int]:
    """The decisions about the frames, and the bytes that the uplink's counter has gained by them."""
    before = _uplink_bytes(edge)
    decisions = [edge.inspect(service, frame.data) for frame in frames]
    return decisions, _uplink_bytes(edge) - before


def _uplink_bytes(edge: Edge) -> int:
    """Requests and replies, once they have come to rest: audits leave in the background, reports come each second."""
    last, until = -1, time.monotonic()
    while (now := edge.status().worker.uplink_bytes) != last or time.monotonic() < until:
        if now != last:
            last, until = now, time.monotonic() + _REST_S
        time.sleep(0.1)
    return last


if __name__ == "__main__":
    main()
