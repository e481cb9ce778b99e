"""Memory for uploads: bounded, given back, and there for whoever comes anew."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudd.answers.uploads import NoRoom, Uploads

names = st.sampled_from(["a", "b", "c"])


def test_one_alone_gets_half() -> None:
    uploads = Uploads(100)
    with contextlib.ExitStack() as held:
        for _ in range(5):
            held.enter_context(uploads.room("greedy", 10))
        with pytest.raises(NoRoom, match="50 bytes"), uploads.room("greedy", 10):
            pass
        with uploads.room("modest", 10), uploads.room("modest", 10):
            pass


def test_what_is_given_back_can_be_had_again() -> None:
    uploads = Uploads(100)
    for _ in range(10):
        with uploads.room("a", 50), pytest.raises(NoRoom), uploads.room("a", 1):
            pass
    with pytest.raises(ZeroDivisionError), uploads.room("a", 50):
        raise ZeroDivisionError
    with uploads.room("b", 50):
        pass


@given(st.lists(st.tuples(names, st.integers(0, 30), st.booleans()), max_size=60))
def test_never_more_than_all_and_nobody_has_more_than_is_free(steps: list[tuple[str, int, bool]]) -> None:
    uploads = Uploads(100)
    held: list[tuple[str, int, contextlib.ExitStack]] = []
    for name, size, take in steps:
        if take:
            stack = contextlib.ExitStack()
            mine, used = (sum(n for who, n, _ in held if who in whose) for whose in ((name,), ("a", "b", "c")))
            try:
                stack.enter_context(uploads.room(name, size))
            except NoRoom:
                assert mine + size > 100 - used - size
                continue
            held.append((name, size, stack))
            assert mine + size <= 100 - used - size
        elif held:
            held.pop(0)[2].close()
    for *_, stack in held:
        stack.close()
    with uploads.room("new", 50):
        pass
