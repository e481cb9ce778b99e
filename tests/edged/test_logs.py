"""What the daemon writes to its log is for people."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from edged import logs


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("zeroconf").filters.clear()


def test_a_network_without_multicast_is_told_without_a_stack_trace(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup({})
    try:
        raise OSError("Network is unreachable")
    except OSError:
        logging.getLogger("zeroconf").warning("Error with socket 17", exc_info=True)
    said = capsys.readouterr().err
    assert "Error with socket 17" in said and "Traceback" not in said
