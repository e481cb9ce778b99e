"""`cloudd answers list|show|export`."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloudd.cli import common
from cloudd.client import AdminClient, ClientError
from edgekit.text import printable

_PAGE = 500


def add(verbs: common.Verbs) -> None:
    """Register the verb and its sub-verbs."""
    group = common.verb(verbs, "answers", "Look at the answered hard samples.", None)
    actions = group.add_subparsers(metavar="ACTION", required=True)
    listing = common.verb(actions, "list", "List the newest answers with both verdicts.", _list)
    listing.add_argument("--limit", type=common.count, default=20, metavar="N", help="how many (20)")
    show = common.verb(actions, "show", "Show one answer.", _show)
    show.add_argument("answer", metavar="ID", help="number in the first column of `answers list`")
    export = common.verb(
        actions,
        "export",
        "Write answered samples into a directory: pictures, and answers.jsonl with one line a sample.",
        _export,
        "A sample whose picture was already removed by retention is written without one.",
    )
    export.add_argument("directory", type=Path, metavar="DIRECTORY")
    export.add_argument("--limit", type=common.count, default=1000, metavar="N", help="how many, newest first (1000)")


def _list(args: argparse.Namespace) -> int:
    answers = _newest(common.client(args), args.limit)
    if args.json:
        return common.show_json(answers)
    head = ("ID", "WHEN", "DEVICE", "SERVICE", "SERIAL", "WHY", "EDGE", "CLOUD", "")
    return common.show_table(head, map(_row, answers), "No hard sample has been answered yet.")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    when = datetime.fromtimestamp(one["answered_at"], UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    edge, cloud = (f"{verdict['label']} {verdict['score']:.2f}" for verdict in (one["edge"], one["cloud"]))
    mark = "" if one["agree"] else "differs"
    serial = one["serial"] or "-"
    return (str(one["id"]), when, one["device"], one["service"], serial, one["reason"], edge, cloud, mark)


def _show(args: argparse.Namespace) -> int:
    answer = common.client(args).get(common.path("answers", args.answer))
    if args.json:
        return common.show_json(answer)
    for key, value in answer.items():
        print(f"{key:12} {printable(value if isinstance(value, str) else json.dumps(value))}")
    return 0


def _export(args: argparse.Namespace) -> int:
    client = common.client(args)
    args.directory.mkdir(parents=True, exist_ok=True)
    written = pictures = 0
    with (args.directory / "answers.jsonl").open("w", encoding="utf-8") as lines:
        for answer in _newest(client, args.limit):
            name = _save_picture(client, answer["id"], args.directory)
            lines.write(json.dumps({**answer, "picture": name}, ensure_ascii=False) + "\n")
            written, pictures = written + 1, pictures + bool(name)
    summary = {"answers": written, "pictures": pictures, "directory": str(args.directory)}
    if args.json:
        return common.show_json(summary)
    print(f"{written} answers with {pictures} pictures are in {args.directory}.")
    return 0


def _newest(client: AdminClient, limit: int) -> list[dict[str, Any]]:
    """The newest answers, fetched a page at a time."""
    found: list[dict[str, Any]] = []
    before = ""
    while len(found) < limit:
        page = client.get(f"/answers?limit={min(_PAGE, limit - len(found))}{before}")
        found += page
        if not page:
            break
        before = f"&before={page[-1]['id']}"
    return found


def _save_picture(client: AdminClient, answer: str, directory: Path) -> str:
    """Write the picture beside answers.jsonl under the answer's number; returns the file name, "" if it is gone."""
    try:
        data = client.request("GET", common.path("answers", answer, "picture"))
    except ClientError as error:
        if error.status != 404:
            raise
        return ""
    suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
    name = f"{int(answer)}{suffix}"
    (directory / name).write_bytes(data)
    return name
