"""`cloudd answers list|show|export`."""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cloudd.cli import common
from cloudd.client import AdminClient, ClientError
from edgekit.regions.header import MosaicAnswer, MosaicHeader
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
        "A sample whose picture was already removed by retention is written without one, and so is one of which only\n"
        "features came. The parts of a mosaic, and what a detector found, are in answers.jsonl as edge and cloud have\n"
        "them, in pixels of the full frame; and with the cloud's labels in coco.json, in pixels of the pictures\n"
        "beside it, for training. A mosaic that came as WebP is written as PNG.",
    )
    export.add_argument("directory", type=Path, metavar="DIRECTORY", help="made if it is not there")
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
    if one["regions"]:
        mark = f"{one['differ']} of {one['regions']} regions differ" if one["differ"] else f"{one['regions']} regions"
    if one["cut"]:
        mark = f"{mark}, features".removeprefix(", ")
    serial = one["serial"] or "-"
    return (str(one["id"]), when, one["device"], one["service"], serial, one["reason"], edge, cloud, mark)


def _show(args: argparse.Namespace) -> int:
    answer = _with_parts(common.client(args).get(common.path("answers", args.answer)))
    if args.json:
        return common.show_json(answer)
    listed = answer.pop("parts")
    for key, value in answer.items():
        print(f"{key:12} {printable(value if isinstance(value, str) else json.dumps(value))}")
    return common.show_table(("PART", "BOX", "WHY", "EDGE", "CLOUD", ""), map(_part, listed), "") if listed else 0


def _part(one: dict[str, Any]) -> tuple[str, ...]:
    edge, cloud = one["edge"], one["cloud"]
    box = " ".join(f"{value:.0f}" for value in (edge or cloud)["box"])
    said = ("-" if side is None else f"{side['label'] or 'nothing'} {side['score']:.2f}" for side in (edge, cloud))
    index = "-" if one["index"] is None else str(one["index"])
    return (index, box, one["reason"] or "found", *said, "differs" if one["differs"] else "")


def _with_parts(answer: dict[str, Any]) -> dict[str, Any]:
    """One answer of the admin API, with the regions of a mosaic and what was found in it by name."""
    from cloudd.answers.parts import parts  # numpy takes longer to import than other verbs take to run

    mosaic, said, differing = (answer.pop(key) for key in ("mosaic", "mosaic_answer", "differing"))
    header = msgspec.convert(mosaic, MosaicHeader | None)
    found = parts(header, msgspec.convert(said, MosaicAnswer | None), differing)
    return {**answer, "parts": msgspec.to_builtins(found)}


def _export(args: argparse.Namespace) -> int:
    from cloudd.answers.parts import Coco, labelled
    from edgekit.vision.images import decode, encode_png, sniff

    client = common.client(args)
    args.directory.mkdir(parents=True, exist_ok=True)
    written = pictures = 0
    coco = Coco()
    with (args.directory / "answers.jsonl").open("w", encoding="utf-8") as lines:
        for listed in _newest(client, args.limit):
            detail = _unless_gone(client, "answers", listed["id"])
            if detail is None:
                continue
            answer = json.loads(detail)
            header = msgspec.convert(answer["mosaic"], MosaicHeader | None)
            said = msgspec.convert(answer["mosaic_answer"], MosaicAnswer | None)
            name = ""
            data = _unless_gone(client, "answers", listed["id"], "picture")
            if data is not None:
                info = sniff(data, webp=header is not None)
                if info.format == "webp":  # few programs that train read it
                    data = encode_png(decode(data, "grey", webp=True))
                name = f"{int(answer['id'])}.{'jpg' if info.format == 'jpeg' else 'png'}"
                (args.directory / name).write_bytes(data)
                if said is not None and (header is not None or not answer["regions"]):
                    coco.add(int(answer["id"]), name, (info.width, info.height), labelled(header, said))
            lines.write(json.dumps({**_with_parts(answer), "picture": name}, ensure_ascii=False) + "\n")
            written, pictures = written + 1, pictures + bool(name)
    if len(coco):
        (args.directory / "coco.json").write_text(json.dumps(coco.document(), ensure_ascii=False), encoding="utf-8")
    summary = {"answers": written, "pictures": pictures, "annotated": len(coco), "directory": str(args.directory)}
    if args.json:
        return common.show_json(summary)
    print(f"{written} answers with {pictures} pictures are in {args.directory}.")
    if len(coco):
        print(f"coco.json has the boxes of {len(coco)} of them.")
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


def _unless_gone(client: AdminClient, *route: str) -> bytes | None:
    """The reply of a GET; None if retention was faster."""
    try:
        return client.request("GET", common.path(*route))
    except ClientError as error:
        if error.status != 404:
            raise
        return None
