"""Rounds of federated learning between real processes: one cloudd, some devices, mTLS on loopback, no training.

    python -m benchmarks.federation [--quick] [--json FILE]

The devices are edged's own client with made-up updates. A round's time is that from the beginning of one to the
beginning of the next: keys, shares, masks, upload, votes, unmasking, publication, and every device's download and
application of the sum. Keys: secure_round_4x1m_s, fedavg_round_2x1m_s (medians), cloudd_peak_mb (of the secure run).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import psutil

from benchmarks import report
from benchmarks.daemons import REPOSITORY, Cloud
from benchmarks.federation_device import Order
from edged.link.enroll import enroll
from edgekit import packages
from edgekit.identity import IdentityStore, generate_key, parse_token
from edgekit.packages import InputSpec, Manifest, Variant
from edgekit.secagg import signatures
from edgekit.secagg.roster import Roster, member, sign_roster
from edgekit.training import MODEL_FILE, write_model

CLASSES = 1000
_DEADLINE_S = 240.0


@dataclass(frozen=True)
class Run:
    """One kind of job."""

    name: str
    devices: int
    side: int  # of the picture: side * side * CLASSES weights
    secure: bool
    rounds: int
    bits: int = 32

    @property
    def values(self) -> int:
        """Shared values of the model."""
        return (self.side**2 + 1) * CLASSES


def package(folder: Path, side: int) -> Path:
    """A linear classifier of side * side pixels into CLASSES labels."""
    root = folder / f"linear-{side}"
    root.mkdir()
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((side * side, CLASSES)).astype(np.float32) * np.float32(0.01)
    nodes = [
        onnx.helper.make_node("Flatten", ["image"], ["flat"]),
        onnx.helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "linear",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 1, side, side])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.zeros(CLASSES, np.float32), "bias"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    write_model(model, root)
    (root / "labels.txt").write_text("".join(f"c{index}\n" for index in range(CLASSES)))
    manifest = Manifest(
        name=f"linear-{side}",
        version="1",
        labels="labels.txt",
        input=InputSpec(width=side, height=side, colour="grey", scale=[1 / 255], name="image"),
        variants=[Variant(file=MODEL_FILE)],
    )
    packages.seal_package(root, manifest)
    return root


def job_text(run: Run, plant: str) -> str:
    """The definition."""
    trust = f'rosters = ["roster.json"]\n[plants]\nnorth = "{plant}"\n' if run.secure else ""
    return (
        f'name = "{run.name}"\nservice = "bench"\nmodel = "linear-{run.side}@1"\nrounds = {run.rounds}\n'
        f"secure = {str(run.secure).lower()}\nleast = {run.devices}\nmost = {run.devices}\nbits = {run.bits}\n"
        f'{trust}[deadlines]\nsettle = 0.0\n[plan.strategy]\nstrategy = "fedavg"\nclip = 100.0\nlimit = 1.0\n'
    )


def hold(run: Run, folder: Path) -> dict[str, Any]:
    """One job from its start to its end; its figures."""
    home = folder / run.name
    home.mkdir()
    cloud = Cloud(home / "cloud")
    cloud.start()
    try:
        cloud.add_model(package(home, run.side))
        stores = [IdentityStore(home / f"device-{place}" / "identity") for place in range(run.devices)]
        for place, store in enumerate(stores):
            issued = asyncio.run(enroll(cloud.url, parse_token(cloud.invite()), store, f"device-{place}"))
            store.install(issued.certificate_pem, issued.authority_pem)
        key = generate_key()
        members = tuple(member(store.key.public_key()) for store in stores)
        roster = Roster(plant="north", serial=1, not_after=time.time() + 86_400, members=members)
        (home / "roster.json").write_bytes(sign_roster(roster, key))
        public = signatures.point(key.public_key()).hex()
        (home / "job.toml").write_text(job_text(run, public))
        started = cloud.command("fl", "start", str(home / "job.toml"), timeout_s=300.0)
        if started.returncode:
            raise RuntimeError(started.stderr)
        job = cloud.client.get(f"/federation/jobs/{run.name}")["job"]["id"]
        idle_mb = memory_mb(cloud.pid, "VmRSS")
        cpu_before = cpu_s(cloud.pid)
        orders = [
            Order(place=p, state_dir=str(home / f"device-{p}"), url=cloud.url, job=job, plants={"north": public})
            for p in range(run.devices)
        ]
        with contextlib.ExitStack() as stack:
            children = [stack.enter_context(_device(order)) for order in orders]
            said = [child.communicate(timeout=_DEADLINE_S)[0] for child in children]
            if any(child.returncode for child in children):
                raise RuntimeError(f"a device of {run.name} failed")
        rounds = cloud.client.get(f"/federation/jobs/{run.name}")["rounds"][::-1]
        begun = [one["opened_at"] for one in rounds]
        cycles = [after - before for before, after in itertools.pairwise(begun)]
        inside = [one["closed_at"] - one["opened_at"] for one in rounds[1:]]
        return {
            "run": run.name,
            "devices": run.devices,
            "values": run.values,
            "rounds": sum(one["outcome"] == "summed" for one in rounds),
            "round_s": statistics.median(cycles),
            "least_s": min(cycles),
            "in_cloudd_s": statistics.median(inside),
            "device_cpu_s": statistics.mean(float(line) for line in said) / run.rounds,
            "cloudd_cpu_s": (cpu_s(cloud.pid) - cpu_before) / run.rounds,
            "up_ratio": rounds[-1]["bytes_up"] / run.devices / (4 * run.values),
            "idle_mb": idle_mb,
            "peak_mb": memory_mb(cloud.pid, "VmHWM"),
        }
    finally:
        cloud.stop()


@contextlib.contextmanager
def _device(order: Order) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.federation_device"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # as edged's own: see edged.background
    )
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order))
        process.stdin.close()
        process.stdin = None
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def memory_mb(pid: int, key: str) -> float:
    """VmRSS or VmHWM of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {key} of process {pid}")


def main() -> int:
    """Entry point."""
    parser = report.arguments(__doc__ or "")
    parser.add_argument("--only", default="", metavar="WORD", help="only the runs with this word in their name")
    args = parser.parse_args()
    rounds = 6 if args.quick else 12
    runs = [
        Run("secure-4x1m", 4, 32, True, rounds),
        Run("fedavg-2x1m", 2, 32, False, rounds),
    ]
    if not args.quick:
        runs += [
            Run("lite-4x1m", 4, 32, True, rounds, 16),
            Run("secure-8x1m", 8, 32, True, rounds),
            Run("secure-4x10m", 4, 100, True, 4),
            Run("secure-8x10m", 8, 100, True, 4),
        ]
    with tempfile.TemporaryDirectory(prefix="fl-") as name:
        rows = [hold(run, Path(name)) for run in runs if args.only in run.name]
    by_name = {row["run"]: row for row in rows}
    figures = {
        key: by_name.get(name, {}).get(figure)
        for key, name, figure in (
            ("secure_round_4x1m_s", "secure-4x1m", "round_s"),
            ("fedavg_round_2x1m_s", "fedavg-2x1m", "round_s"),
            ("cloudd_peak_mb", "secure-4x1m", "peak_mb"),
        )
    }
    print(report.table(rows))
    print(report.table([figures]))
    report.write_json(args.json, "federation", {**figures, "runs": rows}, quick=args.quick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
