"""One side of a case of the training benchmark, in a process of its own: `ours` (onnxruntime) or `torch`.

    python -m benchmarks.training_child ours|torch FOLDER

Reads one JSON command a line and answers each with one: {"run": seconds}, {"peak": 1}, {"gradients": 1}.
FOLDER holds `case.json`, the derived steps, and the weights for PyTorch.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATE = 1e-3
CASE, STEP, WEIGHTS = "case.json", "step", "weights.npz"
MODES = ("frozen", "train")
DRAWS = {"frozen": [slice(2 * i, 2 * i + 2) for i in range(4)], "train": [slice(0, 8)]}
"""Pictures of the batch whose gradients are compared, by how BatchNormalization works."""

Arrays = dict[str, NDArray[Any]]


def batch(count: int, side: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pictures of noise and labels, always the same."""
    rng = np.random.default_rng(5)
    return rng.standard_normal((count, 3, side, side), np.float32), rng.integers(0, 4, count)


def gradients_folder(mode: str) -> str:
    return f"gradients-{mode}"


class OurSide:
    """The derived step on stock onnxruntime."""

    def __init__(self, folder: Path, threads: int) -> None:
        from edgekit.autodiff.run import StepRunner

        self._folder, self._open = folder, StepRunner
        import onnxruntime  # noqa: F401  so that the time of opening is not that of importing

        began = time.perf_counter()
        self._runner = StepRunner(folder / STEP, threads=threads)
        self.session_s = time.perf_counter() - began

    def step(self, images: NDArray[Any], labels: NDArray[Any]) -> float:
        return float(self._runner.step({"image": images, "labels": labels, "learning_rate": RATE})["loss"].item())

    def gradients(self, images: NDArray[Any], labels: NDArray[Any], mode: str) -> Arrays:
        runner = self._open(self._folder / gradients_folder(mode))
        return runner.gradients({"image": images, "labels": labels})[1]


def timed(step: Callable[[], float], window_s: float) -> dict[str, float]:
    """Steps until the window is over, at least two: median wall and CPU time of one, seconds; the last loss."""
    walls, cpus, loss = [], [], 0.0
    end = time.perf_counter() + window_s
    while len(walls) < 2 or time.perf_counter() < end:
        cpu, wall = time.process_time(), time.perf_counter()
        loss = step()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall_s": statistics.median(walls), "cpu_s": statistics.median(cpus), "loss": loss}


def peak_mb() -> float:
    """Peak of this process's resident memory, MiB; getrusage would count the parent's before exec as well."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main() -> None:
    side, folder = sys.argv[1], Path(sys.argv[2])
    case = json.loads((folder / CASE).read_text("utf-8"))
    images, labels = batch(case["batch"], case["side"])
    ours = torch = None
    if side == "ours":
        from edged.background import give_memory_back

        give_memory_back()  # as everything that learns on a device does
        ours = OurSide(folder, case["threads"])
        step = ours.step
        _answer(session_s=ours.session_s)
    else:
        from benchmarks import training_torch

        weights = training_torch.load(str(folder / WEIGHTS))
        torch = training_torch.TorchSide(
            case["network"], weights, case["trained"], case["train_norms"], case["threads"], RATE
        )
        step = torch.step
        _answer()
    for line in sys.stdin:
        command = json.loads(line)
        if "run" in command:
            _answer(**timed(lambda: step(images, labels), command["run"]))
        elif "peak" in command:
            _answer(rss_mb=peak_mb())
        else:
            for mode in MODES if case["train_norms"] else MODES[:1]:
                for number, chosen in enumerate(DRAWS[mode]):
                    few = images[chosen], labels[chosen]
                    if ours is not None:
                        np.savez(folder / f"ours-{mode}-{number}.npz", **ours.gradients(*few, mode))
                    if torch is not None:
                        for kind in ("double", "single"):
                            found = torch.gradients(*few, mode == "train", kind == "double")
                            np.savez(folder / f"{kind}-{mode}-{number}.npz", **found)
            _answer()


def _answer(**figures: float) -> None:
    print(json.dumps({"pid": os.getpid(), **figures}), flush=True)


if __name__ == "__main__":
    main()
