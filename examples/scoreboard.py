"""Counts who was right and where it was decided, and draws it as one line a board."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.messages import Decision

MARKS = {"edge": "·", "cloud": "C", "edge-degraded": "?"}
LEGEND = (
    "each mark is one joint:  · decided at the edge   C decided in the cloud   ? hard, but the cloud did not answer"
)


@dataclass
class Tally:
    """Sums over some samples."""

    samples: int = 0
    edge_right: int = 0
    joint_right: int = 0
    cloud_right: int = 0
    sent: int = 0
    where: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MARKS, 0))

    def add(self, truth: str, decision: Decision, cloud_label: str) -> None:
        """`cloud_label` is what the large model says, whether or not it was asked."""
        self.samples += 1
        self.edge_right += decision.edge.label == truth
        self.joint_right += decision.label == truth
        self.cloud_right += cloud_label == truth
        self.sent += decision.sent is not None
        self.where[decision.decided] += 1

    def text(self) -> str:
        n = max(1, self.samples)
        return (
            f"edge {self.edge_right / n:6.1%}  joint {self.joint_right / n:6.1%}  cloud {self.cloud_right / n:6.1%}  "
            f"sent {self.sent / n:4.0%}"
        )


@dataclass
class Scoreboard:
    """One device's tallies: everything, and only what came after its gate was calibrated."""

    device: str
    total: Tally = field(default_factory=Tally)
    calibrated: Tally = field(default_factory=Tally)

    def board(self, serial: str, results: list[tuple[str, Decision, str]]) -> str:
        """Count one board's (truth, decision, cloud label) and return its line."""
        for truth, decision, cloud_label in results:
            self.total.add(truth, decision, cloud_label)
            if decision.sent != "calibrating":
                self.calibrated.add(truth, decision, cloud_label)
        marks = "".join(MARKS[decision.decided] for _, decision, _ in results)
        return f"{self.device:8} {serial:14} {marks:14} {self.total.text()}"


def summary(boards: list[Scoreboard]) -> str:
    """The closing table: per device, over all samples and after calibration."""
    lines = [f"{'':10}{'':20}{'samples':>8} {'edge':>8} {'joint':>8} {'cloud':>8} {'sent':>6}"]
    for board in boards:
        for name, tally in (("all", board.total), ("after calibration", board.calibrated)):
            n = max(1, tally.samples)
            lines.append(
                f"{board.device:10}{name:20}{tally.samples:8} {tally.edge_right / n:8.1%} {tally.joint_right / n:8.1%} "
                f"{tally.cloud_right / n:8.1%} {tally.sent / n:6.0%}"
            )
    return "\n".join(lines)
