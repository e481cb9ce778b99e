"""The main job on one machine: a cloudd, two edged devices, and a line that feeds them pictures.

    ./dev demo                                   two simulated plants, then the pages stay up until Ctrl-C
    ./dev demo --boards 60 --once                end after 60 boards a plant
    ./dev demo --drift                           lamp and lens age: watch the alarm, safe mode and recalibration
    ./dev demo --images DIR --labels CSV         real pictures: the models' heads are fitted to their labels first

Everything is on loopback, in one directory (demo-state) that is made anew. The numbers compare three ways to decide:
the device's small model alone (edge), the large model for every joint (cloud), and what was really decided (joint).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from benchmarks.daemons import DaemonError, Edge, Fleet
from edgekit.packages import open_package
from edgekit.vision.classification import Classifier
from examples import feeds
from examples.adapt import adapt
from examples.scoreboard import LEGEND, Scoreboard, summary

HERE = Path(__file__).resolve().parent
STATE = HERE.parent / "demo-state"
PLANTS = ("north", "south")


@dataclass
class Line:
    """One plant: its device, its pictures and its score."""

    edge: Edge
    batches: Iterator[feeds.Batch]
    score: Scoreboard


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./dev demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boards", type=int, default=0, help="boards a plant (default: 80, or all real pictures)")
    parser.add_argument("--once", action="store_true", help="end after the last board instead of keeping the pages up")
    parser.add_argument("--drift", action="store_true", help="let the cameras age from board 40 on")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of real pictures")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="their labels: columns file,label[,board][,split]")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    if (options.images is None) != (options.labels is None):
        parser.error("--images and --labels go together")
    return options


def sources(options: argparse.Namespace) -> tuple[Path, Path, list[Iterator[feeds.Batch]]]:
    """The small and the large package, and one iterator of batches for each plant."""
    small, large = HERE / "models" / "solder-small", HERE / "models" / "solder-large"
    if options.images is None:
        count = options.boards or (160 if options.drift else 80)
        lines = [islice(feeds.simulated(plant, options.seed, 40 if options.drift else None), count) for plant in PLANTS]
        return small, large, list(lines)
    real = feeds.folder(options.images, options.labels, len(PLANTS))
    print(f"fitting both models to {len(real.learn)} labelled pictures ...", flush=True)
    pictures, labels = [item.data for item in real.learn], [item.label for item in real.learn]
    fitted_small = adapt(small, STATE / "models" / "own-small", "own-small", pictures, labels, side=32, stages=False)
    fitted_large = adapt(large, STATE / "models" / "own-large", "own-large", pictures, labels, side=128, stages=True)
    return fitted_small.root, fitted_large.root, [iter(feed[: options.boards or None]) for feed in real.feeds]


def definition(small: str, large: str) -> str:
    """The service definition for these two models. Few real pictures cannot certify a risk, so they get a budget."""
    text = (HERE / "services" / "solder.toml").read_text()
    if small != "solder-small":
        text = text.replace('mode = "risk"', 'mode = "budget"\nbudget = 0.2')
    return text.replace("solder-small", small).replace("solder-large", large)


def start(fleet: Fleet, small: Path, large: Path) -> None:
    """Bring everything up: the cloud with both models, then each device, which joins and fetches its model."""
    cloud = fleet.start_cloud(flags=["--name", "demo cloud"])
    for package in (small, large):
        cloud.add_model(package)
    for plant in PLANTS:
        print(f"starting the device of plant {plant} ...", flush=True)
        edge = fleet.start_edge(plant)
        edge.join(cloud)
        edge.add_service(definition(small.name, large.name))


def inspect(line: Line, judge: Classifier) -> Iterator[str]:
    """Feed one plant's batches to its device and yield one line of text for each."""
    for batch in line.batches:
        results = []
        for item in batch:
            decision = line.edge.inspect("solder", item.data, {"Edged-Serial": item.serial})
            results.append((item.label, decision, judge.classify(item.data).label))
        yield line.score.board(batch[0].serial.rsplit("-", 1)[0], results)


def feed(lines: list[Line], judge: Classifier) -> None:
    """Run all plants side by side and print what happens."""
    print(f"\n{LEGEND}\n", flush=True)

    def work(line: Line) -> None:
        for text in inspect(line, judge):
            print(text, flush=True)

    with ThreadPoolExecutor(len(lines)) as pool:
        for future in [pool.submit(work, line) for line in lines]:
            future.result()


def report(fleet: Fleet, lines: list[Line]) -> None:
    """The closing table, what each gate says, and where to look."""
    print(f"\n{summary([line.score for line in lines])}\n")
    for line in lines:
        print(f"{line.score.device}: {line.edge.service('solder').report.gate}")
    assert fleet.cloud is not None
    print(f"\ncloud dashboard   {fleet.cloud.dashboard_url}")
    for line in lines:
        print(f"device {line.score.device:10} http://{line.edge.status().addresses.page}/")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir()
    try:
        small, large, batches = sources(options)
        with Fleet(STATE) as fleet:
            start(fleet, small, large)
            lines = [Line(edge, batch, Scoreboard(edge.name)) for edge, batch in zip(fleet.edges, batches, strict=True)]
            feed(lines, Classifier.load(open_package(large)))
            time.sleep(1.5)  # the devices report once a second
            report(fleet, lines)
            if not options.once and sys.stdin.isatty():
                print("\nThe pages stay up; press Ctrl-C to end.", flush=True)
                while True:
                    time.sleep(3600)
    except KeyboardInterrupt:
        print("\nending ...")
    except (DaemonError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
