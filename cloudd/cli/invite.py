"""`cloudd invite`."""

from __future__ import annotations

import argparse

from cloudd import config
from cloudd.cli import common


def add(verbs: common.Verbs) -> None:
    """Register the verb."""
    parser = common.verb(
        verbs,
        "invite",
        "Print a one-time token and the command that joins a device with it.",
        _do,
        "The token carries the fingerprint of this cloudd's authority, so the device speaks to nobody else.\n"
        "It makes one device and is shown only now.",
    )
    parser.add_argument(
        "--name", type=_name, default="", help="what the device shall be called (it names itself otherwise)"
    )
    parser.add_argument(
        "--ttl", type=_ttl, default=config.DEFAULT_TTL_S, metavar="TIME", help="life of the token: 90, 30m, 2h, 7d (1h)"
    )


def _name(text: str) -> str:
    if len(text) > config.MAX_NAME:
        raise argparse.ArgumentTypeError(f"a name has at most {config.MAX_NAME} characters")
    return text


def _ttl(text: str) -> float:
    seconds = common.duration(text)
    if not 0 < seconds <= config.MAX_TTL_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no life for a token; the longest is {config.MAX_TTL_S / 86_400:.0f}d"
        )
    return seconds


def _do(args: argparse.Namespace) -> int:
    made = common.client(args).post("/invites", {"ttl_s": args.ttl, "name": args.name})
    if args.json:
        return common.show_json(made)
    print(f"On the device type, within {args.ttl / 60:.0f} minutes:\n\n  {made['command']}\n")
    print("On the same LAN the address is found by itself and --url may be left out.")
    return 0
