"""Asking one address after the other until the right server answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from edged.link.candidates import Candidate
from edged.link.errors import LinkError, Unreachable, WrongAuthority

T = TypeVar("T")


async def first_answer(
    candidates: Iterable[Candidate],
    ask: Callable[[str], Awaitable[T]],
    wrong: Callable[[Candidate, WrongAuthority], None] = lambda _candidate, _error: None,
) -> tuple[str, T]:
    """The first (url, answer) that is neither Unreachable nor WrongAuthority; `wrong` is told of every impostor.

    Refused comes from the right server and is passed on. If nobody answers, the first failure's kind is raised with
    the sentences of the first three.
    """
    failures: list[LinkError] = []
    for candidate in candidates:
        try:
            return candidate.url, await ask(candidate.url)
        except WrongAuthority as error:
            wrong(candidate, error)
            failures.append(error)
        except Unreachable as error:
            failures.append(error)
    if not failures:
        raise Unreachable("no address of cloudd is known, and none has been seen on the network")
    raise type(failures[0])("; ".join(str(failure) for failure in failures[:3]))
