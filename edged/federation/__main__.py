"""`python -m edged.federation`: bounds itself, reads one FederationOrder from stdin, and takes part until it is over.

SIGTERM lets it save and end. Where it stands is in the book; of an order to `finish` the last line on stdout is a
TrainDone or a TrainStopped. Exit status 0: done or stopped, 1: it failed, 3: cloudd cannot be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import NoReturn

import msgspec

from edged.background import be_the_only_one, end_with_parent, take_the_least
from edged.collab.sealing import SealError
from edged.federation.book import FOLDER, Book
from edged.federation.chain import ChainError
from edged.federation.notes import Stage
from edged.federation.order import LOST_LINK, MAX_ORDER, FederationOrder
from edged.store import StoreError

log = logging.getLogger("edged.federation")


def main() -> NoReturn:
    events = os.dup(1)
    os.dup2(2, 1)  # what a library prints goes where nobody takes it for an event
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    end_with_parent()
    status = 1
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(MAX_ORDER + 1)[:MAX_ORDER], type=FederationOrder)
        take_the_least()
        folder = Path(order.state_dir) / FOLDER
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with be_the_only_one(folder / "lock", "takes part for this device"):
            status = _finish(order, events) if order.finish else _learn(order)
    except msgspec.MsgspecError as error:
        log.error("The order cannot be read: %s.", error)
    except OSError as error:
        log.error("Federated learning cannot go on: %s.", error.strerror or error)
    except (StoreError, SealError, ChainError, sqlite3.Error) as error:
        log.error("Federated learning cannot use its files: %s.", error)
    except Exception:
        log.exception("Federated learning met an error that it does not know.")
    logging.shutdown()
    os._exit(status)  # without waiting for threads of libraries


def _learn(order: FederationOrder) -> int:
    # Only now: what follows is what the bounds are for.
    from edged.federation.cloud import Rejected
    from edged.federation.lead import lead
    from edged.federation.updates import SourceError
    from edged.federation.work import places, take_part
    from edged.link.errors import LinkError
    from edgekit.secagg.errors import Refusal

    async def run() -> int:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        with places(Path(order.state_dir), order.device_id, order.job) as at:
            try:
                over = await (lead if order.leads else take_part)(order, at, stop)
            except LinkError as error:
                log.warning("cloudd cannot be reached: %s.", error)
                return LOST_LINK
            except Rejected as error:
                text = f"cloudd refuses this device in the job: {error}"
                _note(at.book, order.job, text, "stopped" if error.status == 404 else "failed")
                return 1
            except OSError as error:
                _note(at.book, order.job, f"the disk refuses what the job needs: {error.strerror or error}")
                return 1
            except (Refusal, SourceError) as error:
                log.warning("This device takes no part in the job %s: %s.", order.job[:12], error)
                return 1
            if over is not None:
                log.info("The job %s is over: %s.", order.job[:12], over.outcome)
        return 0

    return asyncio.run(run())


def _note(book: Book, job: str, text: str, stage: Stage | None = None) -> None:
    """Tell people, on the disk if that is possible."""
    log.warning("Job %s: %s.", job[:12], text)
    note = book.job(job)
    with contextlib.suppress(OSError, sqlite3.Error):
        book.tell(job, "refused", text)
        if note is not None:
            book.note(msgspec.structs.replace(note, stage=stage or note.stage, text=text[:500]))


def _finish(order: FederationOrder, events: int) -> int:
    from edged.federation.updates import SourceError
    from edged.federation.work import conclude, places
    from edged.hardware.host import RealHost
    from edged.train.pace import Halted, Pace
    from edged.train.sensors import machine
    from edgekit.messages.learning import TrainStopped

    pace = Pace(order.budget, machine(RealHost()), time.monotonic, time.sleep, lambda progress: None)
    signal.signal(signal.SIGTERM, lambda *_: pace.pause("it was asked to pause"))
    last: msgspec.Struct
    try:
        with places(Path(order.state_dir), order.device_id, order.job) as at:
            last = conclude(order, at, pace)
    except Halted as error:
        last = TrainStopped(kind="paused" if error.asked else "failed", reason=str(error), resumable=True)
    except (SourceError, ValueError, RuntimeError) as error:
        last = TrainStopped(kind="failed", reason=str(error)[:1000], resumable=False)
    _say(events, last)
    return 0 if getattr(last, "directory", "") else 1


def _say(descriptor: int, event: msgspec.Struct) -> None:
    view = memoryview(msgspec.json.encode(event) + b"\n")
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    main()
