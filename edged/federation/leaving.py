"""A site's sums come out of the heads of a service: what people order, and what they are told of it."""

from __future__ import annotations

from collections.abc import Collection

from edged.api import ApiError
from edged.federation.book import Book


def check(service: str, known: Collection[str], leaving: Collection[str], stay: bool) -> None:
    """Raises ApiError where there is nothing to leave, or to stay in."""
    if stay and service not in leaving:
        raise ApiError(404, f"nobody wanted this device out of the heads of {service[:64]!r}")
    if not stay and service not in known:
        raise ApiError(404, f"this device knows no federated job of a service {service[:64]!r}")


def order(book: Book, service: str, reason: str, stay: bool) -> str:
    """Write it down; what to tell people. Blocks; raises sqlite3.Error, OSError."""
    if stay:
        book.stay(service)
        return f"This device may put its sums into heads of {service} again."
    book.leave(service, reason)
    return (
        f"With the next head of {service} that continues the one before, this device takes its sums out. If no other "
        "device changes anything in that round, the change is these sums, and everybody in the job can see them."
    )
