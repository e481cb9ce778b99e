"""`edged samples`: the pictures that are kept here for learning, their labels, and labelled pictures from elsewhere."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from pathlib import Path
from urllib.parse import quote, urlencode

from edged.api import Done
from edged.cli.output import (
    EXIT_OK,
    Failure,
    ProgressBar,
    add_limit,
    age,
    clean,
    client,
    print_json,
    print_table,
    size,
    verb,
)
from edged.samples.bodies import AddHeader, AddReply, LabelBody, RemoveBody
from edged.samples.importing import import_dataset
from edged.samples.records import Label, LabelRecord, NewSample, Opinion, Sample, SampleDetail, SampleStats
from edgekit.datasets.dataset import DatasetError, LabelledBox
from edgekit.datasets.formats import read_dataset
from edgekit.envelope import seal

_ID = "of a sample, or the beginning of it"
_EXAMPLES = """\
  edged samples list --service solder --unlabelled     the newest first
  edged samples queue --service solder                 what to label first: hard, disputed, rare
  edged samples show 3f2a9c                            one sample; the beginning of its id will do
  edged samples label 3f2a9c bridge                    say what it shows
  edged samples label 3f2a9c --box crack,12,30,80,90 --box hole,100,40,130,70
  edged samples import labels.csv --service solder --group board
  edged samples stats --service solder
  edged samples remove 3f2a9c                          for ever: picture, key and labels"""
UPLOAD_S = 120.0
"""Longest wait for one picture to be stored."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(
        subparsers, "samples", "list, label, import and remove pictures that are kept for learning", _EXAMPLES
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = verb(actions, "list", "list samples, the newest first")
    listing.add_argument("--source", default="", help="asked, audit, disputed, doubtful, random, import or operator")
    listing.add_argument("--label", default="", help="of this class, as labelled, or as edge or cloud say")
    listing.add_argument("--tag", default="", help="with this tag only")
    which = listing.add_mutually_exclusive_group()
    which.add_argument(
        "--labelled",
        dest="labelled",
        action="store_const",
        const="1",
        default="",
        help="those that a person has labelled",
    )
    which.add_argument("--unlabelled", dest="labelled", action="store_const", const="0", help="those that nobody has")
    _common(listing, list_samples)
    _common(verb(actions, "queue", "list what a person should label, the most useful first"), show_queue)
    showing = verb(actions, "show", "show one sample with all its labels")
    showing.add_argument("id", help=_ID)
    showing.add_argument("--json", action="store_true", help="print JSON")
    showing.add_argument("--picture", type=Path, metavar="FILE", help="write the picture there")
    showing.set_defaults(run=show)
    labelling = verb(actions, "label", "say what a sample shows")
    labelling.add_argument("id", help=_ID)
    labelling.add_argument("label", nargs="?", default="", help="of the whole picture")
    labelling.add_argument("--box", action="append", metavar="LABEL,LEFT,TOP,RIGHT,BOTTOM", help="in pixels; repeat it")
    labelling.add_argument("--nothing", action="store_true", help="a picture for boxes in which there is nothing")
    labelling.add_argument("--unusable", action="store_true", help="nobody should learn from it")
    labelling.add_argument("--author", default="", help="who says so (default: the user's name)")
    labelling.set_defaults(run=label)
    importing = verb(actions, "import", "bring labelled pictures: a folder a label, CSV, COCO, VOC or YOLO")
    importing.add_argument("data", type=Path, metavar="DIR_OR_FILE", help="the pictures, or the file that lists them")
    importing.add_argument("--service", required=True, help="that is to learn from them")
    importing.add_argument("--group", default="", metavar="COLUMN", help="of a CSV or COCO file: the board or lot")
    importing.set_defaults(run=import_samples)
    removing = verb(actions, "remove", "remove samples for ever")
    removing.add_argument("ids", nargs="*", metavar="ID", help=_ID)
    removing.add_argument("--unreadable", action="store_true", help="those that are damaged, or whose key is lost")
    removing.add_argument("--service", default="", help="every sample of this service")
    removing.set_defaults(run=remove)
    numbers = verb(actions, "stats", "count samples and labels")
    numbers.add_argument("--service", default="", help="of this service only")
    numbers.add_argument("--json", action="store_true", help="print JSON")
    numbers.set_defaults(run=stats)


def _common(parser: argparse.ArgumentParser, run: object) -> None:
    parser.add_argument("--service", default="", required=run is show_queue, help="of this service only")
    add_limit(parser, 50)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def list_samples(options: argparse.Namespace) -> int:
    """Print samples."""
    names = ("service", "limit", "source", "label", "tag", "labelled")
    query = urlencode({name: getattr(options, name) for name in names})
    return _table(options, client(options).get(f"/samples?{query}", list[Sample]), "No samples are kept.")


def show_queue(options: argparse.Namespace) -> int:
    """Print what to label."""
    query = urlencode({"service": options.service, "limit": options.limit})
    return _table(options, client(options).get(f"/samples/queue?{query}", list[Sample]), "Nothing waits for a label.")


def _table(options: argparse.Namespace, samples: list[Sample], none: str) -> int:
    if options.json:
        print_json(samples)
    elif not samples:
        print(none)
    else:
        now = time.time()
        print_table(
            ("SAMPLE", "SERVICE", "SOURCE", "AGE", "GROUP", "EDGE", "CLOUD", "LABEL", "STATE"),
            (
                (
                    one.id[:12],
                    one.service,
                    one.source,
                    age(now - one.captured_at),
                    one.group or "-",
                    _said(one.edge),
                    _said(one.cloud),
                    str(one.label.label) if one.label is not None else "-",
                    one.state if one.state != "kept" or not one.near else f"like {one.near[:12]}",
                )
                for one in samples
            ),
        )
    return EXIT_OK


def _said(opinion: Opinion | None) -> str:
    return f"{opinion.label} {opinion.score:.0%}" if opinion is not None else "-"


def show(options: argparse.Namespace) -> int:
    """Print everything about one sample."""
    daemon = client(options)
    detail = daemon.get(f"/samples/{quote(options.id, safe='')}", SampleDetail)
    one = detail.sample
    if options.picture is not None:
        from edgekit.datasets.dataset import MAX_PICTURE_BYTES

        data = daemon.data(f"/samples/{one.id}/picture", MAX_PICTURE_BYTES)
        try:
            options.picture.write_bytes(data)
        except OSError as error:
            raise Failure(f"{options.picture} cannot be written: {error.strerror}") from None
    if options.json:
        print_json(detail)
        return EXIT_OK
    lines = [
        ("sample", one.id),
        ("service", one.service),
        ("picture", f"{one.width}x{one.height} pixels, {size(one.bytes)} on the disk, SHA-256 {one.sha256}"),
        ("captured", _date(one.captured_at)),
        ("group", one.group or "none"),
        ("edge", f"{_said(one.edge)}, {one.edge.model}" if one.edge is not None else "none"),
        ("cloud", f"{_said(one.cloud)}, {one.cloud.model}" if one.cloud is not None else "none"),
        ("tags", " ".join(one.tags) or "none"),
        ("near", one.near or "no earlier sample looks the same"),
        ("state", one.state),
        ("versions", " ".join(detail.versions) or "in no dataset version"),
    ]
    lines += [
        ("seen", f"{_date(seen.at)} as {seen.source} {seen.sample_id} {seen.serial}") for seen in detail.sightings
    ]
    for record in detail.labels:
        counts = "" if record == one.label else " (does not count)"
        lines.append(("label", f"{record.label}: {record.kind} {record.author}, {_date(record.at)}{counts}"))
    for name, text in lines:
        print(f"{name + ':':<10} {clean(text)}")
    return EXIT_OK


def _date(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def label(options: argparse.Namespace) -> int:
    """Add a label."""
    given = [bool(options.label), bool(options.box), options.nothing, options.unusable]
    if given.count(True) != 1:
        raise Failure("say one of: a label, --box (as often as needed), --nothing, --unusable")
    boxes = tuple(map(_box, options.box or ())) if options.box or options.nothing else None
    said = Label(label=options.label, boxes=boxes, unusable=options.unusable)
    body = LabelBody(label=said, author=options.author or getpass.getuser())
    sample = client(options).post(f"/samples/{quote(options.id, safe='')}/label", Sample, body)
    print(f"Sample {sample.id[:12]} is {clean(str(said))}, says {clean(body.author)}.")
    return EXIT_OK


def _box(text: str) -> LabelledBox:
    name, *sides = text.rsplit(",", 4)
    try:
        left, top, right, bottom = map(float, sides)
    except ValueError:
        raise Failure(f"{text!r} is no box; LABEL,LEFT,TOP,RIGHT,BOTTOM belongs there, in pixels") from None
    return LabelledBox(name, left, top, right, bottom)


def import_samples(options: argparse.Namespace) -> int:
    """Bring labelled pictures."""
    daemon = client(options)
    try:
        dataset = read_dataset(options.data, options.group)
    except DatasetError as error:
        raise Failure(str(error)) from None
    from edged.samples.thumbprint import difference_hash
    from edgekit.vision.sniff import ImageError

    def hash_of(picture: bytes) -> int | None:
        try:
            return difference_hash(picture)
        except ImageError as error:
            raise Failure(f"a picture of {options.data} cannot be used: {error}") from None

    def keep(new: NewSample, picture: bytes, record: LabelRecord) -> bool:
        body = seal(AddHeader(new=new, label=record), picture)
        return daemon.post("/samples", AddReply, body, UPLOAD_S).new

    bar = ProgressBar(f"importing {options.data.name}")
    try:
        report = import_dataset(
            dataset,
            options.service,
            options.data.name,
            time.time(),
            keep,
            hash_of,
            lambda done: bar.show(done, len(dataset.pictures)),
        )
    except DatasetError as error:
        raise Failure(str(error)) from None
    finally:
        bar.clear()
    print(f"{report.added} pictures are new in {clean(options.service)}, {report.known} were there already.")
    if not dataset.pictures[0].group:
        print("They have no groups: of one board, name the column with --group.", file=sys.stderr)
    return EXIT_OK


def remove(options: argparse.Namespace) -> int:
    """Remove samples for ever."""
    body = RemoveBody(ids=options.ids, unreadable=options.unreadable, service=options.service)
    print(client(options).post("/samples/remove", Done, body, UPLOAD_S).text)
    return EXIT_OK


def stats(options: argparse.Namespace) -> int:
    """Print numbers."""
    query = urlencode({"service": options.service})
    numbers = client(options).get(f"/samples/stats?{query}", SampleStats)
    if options.json:
        print_json(numbers)
        return EXIT_OK

    def counts(table: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in table.items()) or "none"

    print(f"{numbers.items} samples, {size(numbers.bytes)}: {counts(numbers.sources)}")
    print(f"labelled by: {counts(numbers.labelled)}; {numbers.unusable} unusable")
    print(f"labels: {clean(counts(numbers.labels))}")
    print(f"{numbers.near} look like an earlier one, {numbers.damaged + numbers.other_key} cannot be read")
    print(f"since the beginning: {counts(numbers.counters)}")
    return EXIT_OK
