"""`edged join`: become a device of a cloudd."""

from __future__ import annotations

import argparse
import sys

from edged.api import JoinBody, JoinReply
from edged.cli.output import EXIT_OK, client, print_json, verb

_EXAMPLES = """\
  edged join edg1.AbC.x1.s3cret                       cloudd is found on the local network
  edged join edg1.AbC.x1.s3cret --url 10.0.0.5:8440   where discovery is forbidden
  edged join - < token.txt                            the token shows in no process list
The token is made by 'cloudd invite', works once, and carries the fingerprint of cloudd's authority: nothing is sent
to a server that cannot prove to be that one."""
_JOIN_S = 120.0


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "join", "join a cloudd with a one-time token", _EXAMPLES)
    parser.add_argument("token", help="the token, or - to read it from standard input")
    parser.add_argument("--url", default="", help="address of cloudd (default: found on the network)")
    parser.add_argument("--name", default="", help="what people call this device")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Join and say what was joined."""
    token = sys.stdin.readline().strip() if options.token == "-" else options.token  # noqa: S105 - the dash is no token
    body = JoinBody(token=token, url=options.url, name=options.name)
    reply = client(options).post("/join", JoinReply, body, timeout_s=_JOIN_S)
    if options.json:
        print_json(reply)
    else:
        print(f"Joined the cloudd at {reply.url}. This device is {reply.device_id}.")
    return EXIT_OK
