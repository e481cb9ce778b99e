"""`edged run`: the daemon itself."""

from __future__ import annotations

import argparse

from edged.cli.output import verb
from edged.config import MAX_THREADS, Flags, parse_address
from edged.link.address import cloud_url
from edged.link.errors import LinkError
from edgekit.toml import TomlError

_EXAMPLES = """\
  edged run                                  all defaults: inference on 127.0.0.1:8700, page on 127.0.0.1:8701
  edged run --inference 0.0.0.0:8700         let cameras on the network post pictures
  edged run --state ./try --inference 127.0.0.1:0 --page 127.0.0.1:0
                                             a second daemon beside the first, on any free ports
The configuration file edged.toml in the state directory (or --config) can hold all of it; flags win."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "run", "run the daemon in the foreground", _EXAMPLES)
    parser.add_argument(
        "--config", metavar="FILE", help="configuration file (default: edged.toml in the state directory)"
    )
    parser.add_argument("--name", help="what people call this device (default: the host name)")
    parser.add_argument(
        "--inference", type=_address, metavar="HOST:PORT", help="address for pictures and inference requests"
    )
    parser.add_argument("--page", type=_address, metavar="HOST:PORT", help="address of the status page and /metrics")
    parser.add_argument("--cloud-url", type=_url, metavar="URL", help="address of cloudd, where discovery is forbidden")
    parser.add_argument(
        "--discover",
        action=argparse.BooleanOptionalAction,
        help="look for cloudd on the local network (default: yes)",
    )
    parser.add_argument("--threads", type=_threads, metavar="N", help="threads that run models (default: all CPUs)")
    parser.add_argument(
        "--adapt",
        action=argparse.BooleanOptionalAction,
        help="measure in the background how each model runs best on this device (default: yes)",
    )
    parser.set_defaults(run=run)


def _address(text: str) -> str:
    try:
        parse_address(text, "the option")
    except TomlError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _url(text: str) -> str:
    try:
        return cloud_url(text) if text else ""
    except LinkError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _threads(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_THREADS):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads: 1 to {MAX_THREADS}, or 0 for all CPUs")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Run until SIGTERM."""
    from edged import daemon, logs  # the other verbs start faster without them

    logs.setup()
    return daemon.run(
        Flags(
            state=options.state,
            config=options.config,
            name=options.name,
            inference=options.inference,
            page=options.page,
            cloud_url=options.cloud_url,
            discover=options.discover,
            threads=options.threads,
            adapt=options.adapt,
        )
    )
