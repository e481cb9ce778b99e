"""`cloudd run`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cloudd import config
from cloudd.cli import common


def add(verbs: common.Verbs) -> None:
    """Register the verb."""
    parser = common.verb(
        verbs,
        "run",
        "Run the daemon in the foreground.",
        _do,
        "Everything has a default. Settings come from cloudd.toml in the state directory or /etc/cloudd, then flags.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file")
    parser.add_argument("--name", help="what people call this cloudd (the host name)")
    parser.add_argument("--listen", metavar="ADDRESS:PORT", help=f"device API ({config.DEFAULT_LISTEN})")
    parser.add_argument("--dashboard", metavar="ADDRESS:PORT", help=f"page, loopback only ({config.DEFAULT_DASHBOARD})")
    parser.add_argument(
        "--database", metavar="URL", help="where devices, models and answers are listed (SQLite in the state directory)"
    )
    parser.add_argument(
        "--blobs",
        metavar="URL",
        help="where model files and pictures lie: a directory, or s3://, gs://, az:// (in the state directory)",
    )
    parser.add_argument(
        "--heartbeat", type=float, metavar="SECONDS", help="devices report at least this often, 0.2 to 300 (10)"
    )
    parser.add_argument("--answer-workers", type=int, metavar="N", help="processes that run the large models (1)")
    parser.add_argument(
        "--retraining-hours",
        type=float,
        metavar="HOURS",
        help="of computing for one model that a device asks to be retrained, 0 to 168; 0: none is (4)",
    )
    parser.add_argument("--no-advertise", action="store_true", help="do not announce this cloudd on the LAN")
    parser.add_argument("--verbose", action="store_true", help="log more")


def _do(args: argparse.Namespace) -> int:
    from cloudd import daemon  # the other verbs must not wait for what only the daemon needs

    state = args.state or config.default_state_dir()
    flags = {
        "name": args.name,
        "listen": args.listen,
        "dashboard": args.dashboard,
        "database": args.database,
        "blobs": args.blobs,
        "heartbeat_s": args.heartbeat,
        "answer_workers": args.answer_workers,
        "retraining_hours": args.retraining_hours,
        "advertise": False if args.no_advertise else None,
    }
    settings = config.load(config.find_config(args.config, state), flags)
    return daemon.run(settings, state, verbose=args.verbose, json_ready=args.json)
