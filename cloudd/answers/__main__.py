"""Entry of the worker process: `python -m cloudd.answers --control-fd N`, started by the pool and by nobody else."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket


def main() -> None:
    """Bound this process, then import what is heavy, then serve the socket until it closes."""
    parser = argparse.ArgumentParser(prog="python -m cloudd.answers")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True, help="address space in bytes")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches us too, but cloudd decides when we end
    resource.setrlimit(resource.RLIMIT_AS, (arguments.memory, arguments.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold pictures of the plant
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from cloudd.answers.worker import serve

    with socket.socket(fileno=arguments.control_fd) as control:
        serve(control, arguments.threads)


if __name__ == "__main__":
    main()
