"""What the delivery of a queue asks of a protocol."""

from __future__ import annotations

from typing import Protocol

from edged.capture.outputs.queue import Message


class NotDelivered(Exception):
    """The receiver has not taken the decision, or cannot be reached; the text is a clause for people, without secrets.

    `retry_after_s`: what the receiver asked for. `poison`: it is this decision that it does not take.
    """

    def __init__(self, text: str, *, retry_after_s: float = 0.0, poison: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.retry_after_s = retry_after_s
        self.poison = poison


class Sender(Protocol):
    """Speaks to one receiver. Belongs to the event loop; one owner at a time."""

    window: int
    """Decisions that may be under way together; the receiver sees them in the order of the calls."""

    async def keep(self) -> None:
        """Be ready to send: connected, where that means something. Raises NotDelivered."""
        ...

    async def send(self, message: Message) -> None:
        """Return when the receiver has taken responsibility. Raises NotDelivered; then `keep` comes first again."""
        ...

    async def close(self) -> None:
        """Say good-bye, within a fraction of a second."""
        ...
