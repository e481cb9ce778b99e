"""Heavy work in a process of its own: what needs onnx or a runtime is no part of the daemon.

A child reads one JSON document from stdin, writes one to stdout and ends. It dies with what it does; the daemon does
not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from cloudd.federation.errors import DiskError, FederationError, no_room

MAX_ORDER = 4 << 20
"""Bytes."""
_PREPARE_S = 600.0
_NICE = 10
_FAILED, _NO_ROOM = 1, 75  # exit status; the latter is EX_TEMPFAIL of sysexits.h

OrderT = TypeVar("OrderT", bound=msgspec.Struct)
ReplyT = TypeVar("ReplyT", bound=msgspec.Struct)


class PrepareOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Derive the train step of a job. Paths are absolute."""

    base: str  # the base's package
    definition: str  # TOML
    folder: str  # gets the train step; not there yet


class _Failure(msgspec.Struct):
    error: str = ""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    values: int = 0  # shared ones
    error: str = ""


async def prepared(base: Path, definition: str, folder: Path) -> int:
    """Have the train step derived into `folder`; returns the number of shared values. Raises FederationError."""
    order = PrepareOrder(base=str(base), definition=definition, folder=str(folder))
    reply = await ask("cloudd.federation.preparing", order, Prepared, _PREPARE_S)
    if reply.error:
        raise FederationError(reply.error)
    return reply.values


async def ask(module: str, order: msgspec.Struct, reply: type[ReplyT], seconds: float) -> ReplyT:
    """Run a module with an order.

    Raises FederationError if it ends without a reply, or takes too long; DiskError if the disk had no room.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    try:
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate(msgspec.json.encode(order))
    except TimeoutError:
        raise FederationError(f"{module} did not end within {seconds:.0f} seconds") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    try:
        if process.returncode == _NO_ROOM:
            raise DiskError(msgspec.json.decode(output, type=_Failure).error)
        return msgspec.json.decode(output, type=reply)
    except msgspec.DecodeError:
        raise FederationError(f"{module} ended with status {process.returncode}; the log says more") from None


def give_way() -> None:
    """A host that answers devices goes on answering them."""
    os.nice(_NICE)


def carry_out(
    kind: type[OrderT],
    work: Callable[[OrderT], msgspec.Struct],
    failed: Callable[[str], msgspec.Struct],
    refusals: tuple[type[Exception], ...],
) -> int:
    """In the child: read the order, give way, and write what `work` replies; the exit status.

    A refusal and a disk that does not play along become what `failed` makes of the sentence, and another status than 0.
    """
    try:
        order = msgspec.json.decode(sys.stdin.buffer.read(MAX_ORDER), type=kind)
        give_way()
        reply, status = work(order), 0
    except refusals as error:
        reply, status = failed(str(error)), _FAILED
    except OSError as error:
        status = _NO_ROOM if no_room(error) else _FAILED
        reply = failed(f"{error.filename or 'the disk'}: {error.strerror}")
    sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
    return status
