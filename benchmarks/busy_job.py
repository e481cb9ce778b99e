"""A job that takes all the CPU it gets, as training does: `python -m benchmarks.busy_job`.

One thread for each CPU that it may use trains a small network on random numbers: matrix products forwards and backwards
and a walk over all weights, so that it fills the vector units and the caches. Prints its number of steps each second;
ends with its parent.
"""

from __future__ import annotations

import os
import threading
import time

# One thread a product: the busy threads are those of this program.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402 - it reads those when it is imported

_WIDTH, _BATCH = 768, 128
_RATE = np.float32(1e-5)


class Trainer:
    """Two dense layers and plain gradient descent towards random numbers."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._first = generator.standard_normal((_WIDTH, _WIDTH), np.float32) * np.float32(0.03)
        self._second = generator.standard_normal((_WIDTH, _WIDTH), np.float32) * np.float32(0.03)
        self._inputs = generator.standard_normal((_BATCH, _WIDTH), np.float32)
        self._wanted = generator.standard_normal((_BATCH, _WIDTH), np.float32)
        self.steps = 0

    def step(self) -> float:
        """One step; the mean squared error before it."""
        hidden = np.maximum(self._inputs @ self._first, 0)
        error = hidden @ self._second - self._wanted
        back = (error @ self._second.T) * (hidden > 0)
        self._second -= _RATE * (hidden.T @ error)
        self._first -= _RATE * (self._inputs.T @ back)
        self.steps += 1
        return float(np.mean(error * error))

    def train(self) -> None:
        """For ever."""
        while True:
            self.step()


def main() -> None:
    trainers = [Trainer(seed) for seed in range(len(os.sched_getaffinity(0)))]
    for trainer in trainers:
        threading.Thread(target=trainer.train, daemon=True).start()
    parent, before = os.getppid(), 0
    while os.getppid() == parent:
        time.sleep(1.0)
        now = sum(trainer.steps for trainer in trainers)
        print(now - before, flush=True)
        before = now


if __name__ == "__main__":
    main()
