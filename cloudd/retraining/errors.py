"""What this room cannot do, with a text that says why."""

from __future__ import annotations


class RetrainingError(Exception):
    """A request of a device that is refused. `status`: HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Unteachable(ValueError):
    """Nothing can be learned from this network and these pictures, however often it is tried. A clause."""
