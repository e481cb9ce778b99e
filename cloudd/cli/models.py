"""`cloudd models add|list|show`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cloudd.cli import common

_ADD_S = 3600.0  # a slow disk reads the 8 GB that a package may have twice, and writes them once


def add(verbs: common.Verbs) -> None:
    """Register the verb and its sub-verbs."""
    group = common.verb(verbs, "models", "Register model packages and list them.", None)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    adding = common.verb(
        actions,
        "add",
        "Register the model package in a directory.",
        _add,
        "The daemon reads the directory, checks every file against package.toml and keeps a copy. A name and version\n"
        "stand for the same bytes for ever: a changed model needs a new version.",
    )
    adding.add_argument("directory", type=Path, metavar="DIRECTORY", help="with a package.toml")
    common.verb(actions, "list", "List every registered model version.", _list)
    show = common.verb(actions, "show", "Show the files of one model.", _show)
    show.add_argument("model", metavar="MODEL", help="NAME (its newest version) or NAME@VERSION")


def _add(args: argparse.Namespace) -> int:
    entry = common.client(args, _ADD_S).post("/models", {"path": str(args.directory.absolute())})
    if args.json:
        return common.show_json(entry)
    print(f"{entry['name']}@{entry['version']} is registered ({len(entry['files'])} files).")
    return 0


def _list(args: argparse.Namespace) -> int:
    models = common.client(args).get("/models")
    if args.json:
        return common.show_json(models)
    rows = [
        (f"{one['name']}@{one['version']}", str(one["files"]), f"{one['bytes'] / 1e6:.2f} MB", one["description"])
        for one in models
    ]
    return common.show_table(
        ("MODEL", "FILES", "SIZE", "DESCRIPTION"), rows, "No model is registered; `cloudd models add DIRECTORY`."
    )


def _show(args: argparse.Namespace) -> int:
    entry = common.client(args).get(common.path("models", args.model))
    if args.json:
        return common.show_json(entry)
    print(f"{entry['name']}@{entry['version']}, digest {entry['digest']}")
    rows = [(one["path"], str(one["size"]), one["sha256"][:16]) for one in entry["files"]]
    return common.show_table(("FILE", "BYTES", "SHA-256"), rows, "It has no files.")
