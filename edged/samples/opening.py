"""Opens the sample store of a state directory, for the worker and for the supervisor."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from edged.collab.sealing import Kek
from edged.samples.policy import limits_of
from edged.samples.store import SampleStore
from edgekit.messages import Event
from edgekit.services.definition import Samples

DIRECTORY = "samples"
"""Of the state directory."""


def open_store(
    state_dir: Path,
    device_id: str,
    policy: Callable[[str], Samples],
    reserve: int,
    on_event: Callable[[Event], None],
    wall: Callable[[], float],
) -> SampleStore:
    """Open the store with the device's key, making both where there are none.

    `policy` is a service's `[samples]`, also of one that was removed; `reserve` are bytes of the disk. `on_event` may
    come from any thread. Raises SealError for a damaged key, StoreError or OSError.
    """
    environment = os.environ.get("CREDENTIALS_DIRECTORY")
    path, credentials = state_dir / "keys" / "kek", Path(environment) if environment else None
    return SampleStore(
        state_dir / DIRECTORY,
        Kek.open(path, credentials),
        device_id,
        limits=lambda service: limits_of(policy(service)),
        reserve=reserve,
        wall=wall,
        on_event=on_event,
        find_key=lambda: Kek.find(path, credentials),
    )
