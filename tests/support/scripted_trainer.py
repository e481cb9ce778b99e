"""A training process that speaks the supervisor's protocol and does what a file says.

Run as `python scripted_trainer.py SCRIPT`. SCRIPT has one word a line; each start takes the first one away (the last
stays): `good` and `bad` make a candidate that is accepted or refused, `crash` and `failed` and `full` and `refused`
make none, `away` says that cloudd is at work, `babble` says what is no event, `wait` works until it is told to stop.
Orders are appended to SCRIPT.orders.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import msgspec

from edgekit.learning.records import Fact
from edgekit.learning.trial import Expected, Verdict
from edgekit.messages.learning import FromTraining, TrainDone, TrainOrder, TrainProgress, TrainStopped
from edgekit.packages import open_package, seal_package


def say(event: FromTraining) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


def candidate(order: TrainOrder, accepted: bool) -> TrainDone:
    """The base under the candidate's name."""
    folder = Path(order.scratch) / "package"
    if not folder.exists():
        shutil.copytree(order.base, folder)
        (folder / "package.toml").unlink()
        manifest = open_package(Path(order.base)).manifest
        seal_package(folder, msgspec.structs.replace(manifest, name=order.name, version=order.version))
    fact = Fact(name="accuracy", value=0.0, limit=0.01, passed=accepted, text="by 600 items it is as good")
    verdict = Verdict(
        accepted=accepted, reason="" if accepted else "refused: it is worse", dataset="d" * 64, facts=[fact]
    )
    return TrainDone(
        directory=str(folder),
        ref=f"{order.name}@{order.version}",
        digest=open_package(folder).digest,
        seconds=12.0,
        verdict=verdict,
        expected=Expected(),
    )


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=TrainOrder)
    script = Path(sys.argv[1])
    with script.with_suffix(".orders").open("ab") as file:
        file.write(msgspec.json.encode(order) + b"\n")
    word, *rest = script.read_text().split()
    if rest:
        script.write_text("\n".join(rest))
    Path(order.scratch).mkdir(parents=True, exist_ok=True)
    say(TrainProgress(step="reading", done=1, total=4))
    match word:
        case "good" | "bad":
            say(candidate(order, word == "good"))
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "failed":
            say(TrainStopped(kind="failed", reason="a file is damaged", resumable=False, seconds=3.0))
        case "full":
            say(TrainStopped(kind="failed", reason="the disk is full", resumable=True, seconds=3.0))
        case "refused":
            say(TrainStopped(kind="refused", reason="this rung cannot help", resumable=False, seconds=3.0))
        case "away":
            reason = "cloudd trains a larger network"
            say(TrainStopped(kind="waiting", reason=reason, resumable=True, again_s=300.0))
        case "babble":
            sys.stdout.write("no event\n")
            sys.stdout.flush()
            time.sleep(60)
        case "wait":
            signal.signal(signal.SIGTERM, lambda *_: pause())
            while True:
                time.sleep(1)


def pause() -> None:
    say(TrainStopped(kind="paused", reason="it was told to", resumable=True))
    os._exit(0)


if __name__ == "__main__":
    main()
