"""Entry of the worker process: `python -m edged.serve --control-fd N --http-fd M`. Started by the supervisor only."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys

from edged.serve.parent import die_with_parent

# Before anything heavy is imported: these libraries read their environment once.
_GUARDS = {
    "ORT_DISABLE_TELEMETRY": "1",
    "OPENCV_IO_MAX_IMAGE_PIXELS": str(1 << 25),
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_FILES = 4096
_MEMORY_SHARE = 0.75
"""Of the machine's memory. A model of 100 bytes can ask for any amount; then it fails, and the others go on."""


def main() -> int:
    """Guard the process, then serve until drained; the exit status."""
    parser = argparse.ArgumentParser(prog="edged.serve", description="The inference worker of edged; not for people.")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--http-fd", type=int, required=True)
    arguments = parser.parse_args()
    os.environ.update(_GUARDS)
    die_with_parent()  # its successor needs the port and the folders at once, and we survive a kill anyway
    _limit_memory()
    _allow_files()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    import asyncio

    from edged.serve.eager import EagerSelector, may_look
    from edged.serve.worker import serve

    selector = EagerSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        on_inline = selector.expect if may_look() else lambda: None
        return runner.run(serve(arguments.control_fd, arguments.http_fd, on_inline))


def _limit_memory() -> None:
    """Bound what this process may write to (RLIMIT_DATA); address space alone, which GPU drivers reserve, is free."""
    limit = int(_MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _allow_files() -> None:
    """More descriptors than connections may be open: each needs two while it is handed over to the next worker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    try:
        status = main()
    except Exception:
        logging.getLogger("edged.serve").exception("the worker failed")
        status = 1
    logging.shutdown()
    # Not sys.exit: a thread stuck in a network share or a runtime's teardown must not keep a drained worker alive.
    os._exit(status)
