"""What secure aggregation costs a device and cloudd, beside Flower's SecAgg+; and what a cheating cloudd gets.

    python -m benchmarks.secagg [--quick] [--json FILE] [--peers DIR] [--params N..] [--clients N..] [--dropout S..]
    python -m benchmarks.secagg --attack [--json FILE] [--peers DIR]

Both run all devices and the server in one process with one thread: no network and no training. Times are CPU seconds
of a whole round, the median device and the server; each case and each side is run in turn several times and the least
is taken, so that neighbours on the machine lengthen neither. up_ratio and down_ratio are bytes of one device over the
bytes of the model as float32; down includes the sum that cloudd publishes. Everybody masks with everybody. Ours
includes what Flower has not: signatures of every device on its keys, its list and the survivors, and the check of all
of them; not the reading of the roster, which a device does once for many rounds.

The share that vanishes does so before its masked vector. Flower's threshold is 0.6 of the cohort. Ours is more than two
thirds (a third may collude), so a case in which more vanish than that allows is left out.

Flower needs an interpreter of its own: python3 -m venv DIR/flower && DIR/flower/bin/pip install flwr==1.41.0, and
EDGED_PEERS=DIR, or --peers DIR. Without it its columns say "not installed".
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report, secagg_attacks
from benchmarks.secagg_cohort import Stand, config, plants
from edgekit.secagg import fixedpoint, parameters
from edgekit.secagg.policy import Policy

COLUMNS = [
    "mode",
    "params",
    "n",
    "drop",
    "client_cpu_s",
    "server_cpu_s",
    "up_ratio",
    "down_ratio",
    "flower_client_cpu_s",
    "flower_server_cpu_s",
    "client_x",
    "server_x",
    "error",
]
NOT_INSTALLED = "not installed"
GOAL_CLIENT = 8.0
GOAL_SERVER = {100_000: 100.0, 1_000_000: 25.0}
"""Parameters -> times less than Flower, for MANY devices or more."""
MANY = 32
GOAL_UP = {"full": 1.01, "lite": 0.51}
_PEER = Path(__file__).parent / "peers" / "flower_secagg.py"
_PEER_SECONDS = 900


def ours(params: int, devices: int, drop: int, lite: bool) -> dict[str, Any]:
    """One round: the row's own columns, and the largest error of the mean."""
    these = plants(devices)
    configuration = config(these.membership(), devices, parameters=params, bits=16 if lite else 32)
    stand = Stand(these, configuration, policy=Policy())
    rng = np.random.default_rng(7)
    base = rng.standard_normal(params, dtype=np.float32) * np.float32(0.1)
    factor = {node: np.float32(1 + place % 7 / 10) for place, node in enumerate(these.nodes)}
    gone = these.nodes[:drop]
    result = stand.run(_Scaled(base, factor), gone={"masked": gone})
    found, weight = fixedpoint.decode(result.words, len(result.survivors), stand.server.encoding)
    wanted = base * sum(float(factor[node]) for node in result.survivors)
    costs = stand.costs
    return {
        "client_cpu_s": statistics.median(costs.client[node] for node in result.survivors),
        "server_cpu_s": costs.server,
        "up_ratio": statistics.median(costs.up[node] for node in result.survivors) / (4 * params),
        "down_ratio": (statistics.median(costs.down[n] for n in result.survivors) + result.words.nbytes) / (4 * params),
        "error": float(np.abs(found - wanted).max()) / weight,
    }


class _Scaled(dict[bytes, Any]):
    """Updates made when they are asked for: a hundred of a million parameters would be 400 MB."""

    def __init__(self, base: Any, factor: dict[bytes, Any]) -> None:
        super().__init__()
        self._base, self._factor = base, factor

    def __missing__(self, node: bytes) -> Any:
        return self._base * self._factor[node]


def flower_python(peers: Path | None) -> Path | None:
    """Flower's interpreter, if there is one."""
    found = peers / "flower" / "bin" / "python" if peers else None
    return found if found and found.exists() else None


def flower(python: Path, *arguments: str) -> dict[str, Any]:
    """What the peer's script prints. Raises CalledProcessError."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(python), str(_PEER), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=_PEER_SECONDS,
        env=environment,
    )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def least(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Each figure's least of several runs of one case."""
    runs = list(rows)
    return {name: min(run[name] for run in runs) for name in runs[0]}


def case(params: int, devices: int, drop: int, turns: int, python: Path | None) -> list[dict[str, Any]]:
    """The rows of one case: ours in both word sizes, each beside Flower's."""
    own: dict[str, list[dict[str, Any]]] = {"full": [], "lite": []}
    peer: list[dict[str, Any]] = []
    for turn in range(turns):
        for mode, runs in own.items():
            runs.append(ours(params, devices, drop, mode == "lite"))
        if python is not None and (turn == 0 or peer[-1]["server_cpu_s"] < 10):
            peer.append(flower(python, str(params), str(devices), str(drop)))
    theirs = least(peer) if peer else None
    rows = []
    for mode, runs in own.items():
        row = {"mode": mode, "params": params, "n": devices, "drop": drop, **least(runs)}
        row["flower_client_cpu_s"] = theirs["client_cpu_s"] if theirs else NOT_INSTALLED
        row["flower_server_cpu_s"] = theirs["server_cpu_s"] if theirs else NOT_INSTALLED
        if theirs:
            row["client_x"] = theirs["client_cpu_s"] / row["client_cpu_s"]
            row["server_x"] = theirs["server_cpu_s"] / row["server_cpu_s"]
            row["flower_up_ratio"], row["flower_down_ratio"] = theirs["up_ratio"], theirs["down_ratio"]
        rows.append(row)
    return rows


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The goals, each met or not; None where Flower is not installed or no case says it."""
    full = [row for row in rows if row["mode"] == "full" and "client_x" in row]
    many = [row for row in full if row["n"] >= MANY and row["params"] in GOAL_SERVER]
    return {
        "client_cpu_met": all(row["client_x"] >= GOAL_CLIENT for row in full) if full else None,
        "server_cpu_met": all(row["server_x"] >= GOAL_SERVER[row["params"]] for row in many) if many else None,
        "up_ratio_met": all(row["up_ratio"] <= GOAL_UP[row["mode"]] for row in rows),
    }


def attack(options: Any) -> None:
    """Every cheating attempt, and the one against Flower that takes both shares of a node."""
    rows = [secagg_attacks.run(name) for name in secagg_attacks.ATTACKS]
    print(report.table(rows, ["attack", "outcome", "attempts", "rules"]))
    python = flower_python(options.peers)
    answer: Any = NOT_INSTALLED if python is None else flower(python, "--attack")
    print(f"\nFlower, asked for both shares of one of 8 nodes: {answer}")
    report.write_json(options.json, "secagg-attack", {"attacks": rows, "flower": answer}, quick=options.quick)
    if any(row["outcome"] != "refused" for row in rows):
        raise SystemExit(1)


def main(argv: list[str] | None = None) -> None:
    parser = report.arguments((__doc__ or "").splitlines()[0])
    peers = os.environ.get("EDGED_PEERS")
    parser.add_argument("--peers", type=Path, default=Path(peers) if peers else None, metavar="DIR")
    parser.add_argument("--attack", action="store_true", help="cheat instead of measuring")
    parser.add_argument("--params", type=int, nargs="+")
    parser.add_argument("--clients", type=int, nargs="+")
    parser.add_argument("--dropout", type=float, nargs="+", default=[0, 0.1, 0.3])
    options = parser.parse_args(argv)
    if options.attack:
        return attack(options)
    sizes = options.params or ([100_000] if options.quick else [100_000, 1_000_000])
    cohorts = options.clients or [8, 32]
    turns = 1 if options.quick else 3
    python = flower_python(options.peers)
    rows: list[dict[str, Any]] = []
    for params in sizes:
        for devices in cohorts:
            quorum = parameters.quorum(devices, Policy().expected_colluders(devices))
            for share in options.dropout:
                drop = round(share * devices)
                if devices - drop >= quorum:
                    rows += case(params, devices, drop, turns, python)
    print(report.table(rows, COLUMNS))
    goals = verdict(rows)
    print()
    print(report.transposed([{"goal": "found", **goals}], "goal"))
    report.write_json(options.json, "secagg", {"cases": rows, **goals}, quick=options.quick)
    return None


if __name__ == "__main__":
    main()
