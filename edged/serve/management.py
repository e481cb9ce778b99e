"""Loading and unloading models by request: who may ask, and the supervisor's answer."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable

from edgekit.messages import ModelDone, ModelWanted
from edgekit.packages import PackageError, split_ref

WAIT_S = 150.0
"""Longest wait for the supervisor, which starts a worker with the model beside this one."""
MAX_WAITING = 16


class ManagementError(Exception):
    """The model was not loaded or unloaded; the text is a sentence."""


class Management:
    """Asks the supervisor on behalf of clients. Use it on the event loop."""

    def __init__(self, token: str, send: Callable[[ModelWanted], None]) -> None:
        """`token` is what such clients must know; "" means that nobody may ask."""
        self._token, self._send = token.encode(), send
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._tickets = 0

    def allowed(self, token: str) -> bool:
        """Whether a client that shows `token` may ask. Takes the same time for every wrong one."""
        return bool(self._token) and hmac.compare_digest(self._token, token.encode(errors="replace"))

    async def ask(self, ref: str, wanted: bool) -> None:
        """Have a model (NAME or NAME@VERSION) loaded, or unloaded, and wait until it is. Raises ManagementError.

        The supervisor answers when a successor of this worker serves, or when it has refused.
        """
        try:
            split_ref(ref)
        except PackageError as error:
            raise ManagementError(str(error)) from None
        if len(self._waiting) >= MAX_WAITING:
            raise ManagementError(f"{MAX_WAITING} requests to load or unload models wait already; try again later")
        self._tickets += 1
        ticket = self._tickets
        answer = self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._send(ModelWanted(ticket=ticket, ref=ref, wanted=wanted))
            error_text = await asyncio.wait_for(answer, WAIT_S)
        except TimeoutError:
            word = "loaded" if wanted else "unloaded"
            raise ManagementError(f"{ref} was not {word} within {WAIT_S:.0f} s; see `edged status`") from None
        finally:
            del self._waiting[ticket]
        if error_text:
            raise ManagementError(error_text)

    def answered(self, message: ModelDone) -> None:
        """The supervisor's reply; one that nobody waits for any more is dropped."""
        answer = self._waiting.get(message.ticket)
        if answer is not None and not answer.done():
            answer.set_result(message.error)
