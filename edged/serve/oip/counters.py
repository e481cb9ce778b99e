"""What one model version did over the protocol. Changed in the event loop only, so nothing here needs a lock."""

from __future__ import annotations

from typing import Any, Literal

from edgekit.messages import ModelStatistics

Failure = Literal["rejected", "canceled", "backend", "other"]

_MAX_SIZES = 64
"""Batch sizes counted apart; any beyond count as the largest of them."""


class Counters:
    """Sums since the worker started; durations in nanoseconds."""

    __slots__ = (
        "backend",
        "batches",
        "canceled",
        "fail_ns",
        "inference_count",
        "last_at",
        "other",
        "queue_ns",
        "rejected",
        "request_ns",
        "success",
    )

    def __init__(self) -> None:
        self.success = self.rejected = self.canceled = self.backend = self.other = 0
        self.inference_count = 0
        self.request_ns = self.fail_ns = self.queue_ns = 0
        self.last_at = 0.0
        self.batches: dict[int, list[int]] = {}  # samples of a run -> runs, and nanoseconds of its three stages

    def answered(
        self, batch: int, runs: int, stages_ns: tuple[int, int, int], queue_ns: int, total_ns: int, wall: float
    ) -> None:
        """One request was answered: `batch` samples in `runs` runs of the model; reading, running, encoding."""
        self.success += 1
        self.inference_count += batch
        self.request_ns += total_ns
        self.queue_ns += queue_ns
        self.last_at = wall
        size = batch if runs == 1 else batch // (runs or 1)
        sums = self.batches.get(size)
        if sums is None:
            sums = self.batches.setdefault(min(size, _MAX_SIZES), [0, 0, 0, 0])
        read, ran, encoded = stages_ns
        sums[0] += runs
        sums[1] += read
        sums[2] += ran
        sums[3] += encoded

    @property
    def exec_count(self) -> int:
        """Runs of the model."""
        return self._sum(0)

    @property
    def input_ns(self) -> int:
        """Nanoseconds of reading and preparing."""
        return self._sum(1)

    @property
    def infer_ns(self) -> int:
        """Nanoseconds of the model."""
        return self._sum(2)

    @property
    def output_ns(self) -> int:
        """Nanoseconds of encoding."""
        return self._sum(3)

    def _sum(self, at: int) -> int:
        return sum(sums[at] for sums in self.batches.values())

    def failed(self, reason: Failure, total_ns: int = 0) -> None:
        """One request was not answered."""
        setattr(self, reason, getattr(self, reason) + 1)
        self.fail_ns += total_ns

    def report(self, name: str, version: str, pending: int) -> ModelStatistics:
        """For the supervisor."""
        return ModelStatistics(
            name=name,
            version=version,
            success=self.success,
            rejected=self.rejected,
            canceled=self.canceled,
            backend=self.backend,
            other=self.other,
            inference_count=self.inference_count,
            exec_count=self.exec_count,
            request_us=self.request_ns // 1000,
            queue_us=self.queue_ns // 1000,
            compute_input_us=self.input_ns // 1000,
            compute_infer_us=self.infer_ns // 1000,
            compute_output_us=self.output_ns // 1000,
            pending=pending,
            last_at=self.last_at,
        )

    def wire(self, name: str, version: str) -> dict[str, Any]:
        """As `GET /v2/models/NAME/stats` shows them. Triton counts one queue wait and one compute a request."""
        count = self.success
        failures = self.rejected + self.canceled + self.backend + self.other
        return {
            "name": name,
            "version": version,
            "last_inference": int(self.last_at * 1000),
            "inference_count": self.inference_count,
            "execution_count": self.exec_count,
            "inference_stats": {
                "success": _pair(count, self.request_ns),
                "fail": _pair(failures, self.fail_ns),
                "queue": _pair(count, self.queue_ns),
                "compute_input": _pair(count, self.input_ns),
                "compute_infer": _pair(count, self.infer_ns),
                "compute_output": _pair(count, self.output_ns),
                "cache_hit": _pair(0, 0),
                "cache_miss": _pair(0, 0),
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": _pair(sums[0], sums[1]),
                    "compute_infer": _pair(sums[0], sums[2]),
                    "compute_output": _pair(sums[0], sums[3]),
                }
                for size, sums in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }


def _pair(count: int, nanoseconds: int) -> dict[str, int]:
    return {"count": count, "ns": nanoseconds}
