"""How the daemon and its workers log: plain sentences on stderr, with levels that journald understands."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

_SYSLOG = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


class _JournalFormatter(logging.Formatter):
    """`<4>sentence`: journald takes the number as the priority; it adds time and process itself."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record).replace("\n", "\n  ")
        return f"<{_SYSLOG.get(record.levelno, 6)}>{text}"


def setup(environ: Mapping[str, str] = os.environ) -> None:
    """Send everything from INFO up to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in environ:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for noisy in ("zeroconf", "asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A network that does not take multicast is told in a line; where in the library that happened helps nobody.
    logging.getLogger("zeroconf").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True
