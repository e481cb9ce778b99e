"""`edged datasets`: lists of labelled samples that never change, for learning and for other programs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from urllib.parse import quote

from edged.api import Done
from edged.cli.output import EXIT_OK, EXIT_PROBLEM, Failure, ProgressBar, clean, client, print_json, print_table, verb
from edged.client import Client
from edged.samples.bodies import MAX_PAGE, MakeBody, PicturesPage
from edged.samples.records import VersionInfo
from edgekit.datasets.dataset import MAX_PICTURE_BYTES, Dataset, DatasetError, Picture
from edgekit.datasets.formats import FORMATS, write_dataset

_EXAMPLES = """\
  edged datasets make solder-1 --service solder        of everything that has a label that counts
  edged datasets make solder-2 --service solder --since 2026-11-01
  edged datasets list
  edged datasets show solder-1
  edged datasets export solder-1 ./solder-1 --format coco
  edged datasets delete solder-1                       its samples stay"""
MAKE_S = 300.0
"""Longest wait for a version of many samples."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "datasets", "make, show, export and delete dataset versions", _EXAMPLES)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    making = verb(actions, "make", "fix the labelled samples of a service as a version")
    making.add_argument("name", help="of the version")
    making.add_argument("--service", required=True, help="whose samples it takes")
    making.add_argument("--since", default="", metavar="DATE", help="captured then or later: 2026-11-01")
    making.add_argument("--until", default="", metavar="DATE", help="captured before: 2026-12-01")
    making.add_argument("--tag", default="", help="with this tag only")
    making.add_argument("--kind", choices=("labels", "boxes"), default="", help="where samples have both")
    making.set_defaults(run=make)
    listing = verb(actions, "list", "list the versions, the newest first")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=list_versions)
    showing = verb(actions, "show", "show what is in a version")
    showing.add_argument("name", help="of the version")
    showing.add_argument("--json", action="store_true", help="print JSON")
    showing.set_defaults(run=show)
    exporting = verb(actions, "export", "write pictures and labels into a new directory")
    exporting.add_argument("name", help="of the version")
    exporting.add_argument("directory", type=Path, help="that gets it")
    exporting.add_argument("--format", choices=FORMATS, default="coco", help="default: coco")
    exporting.set_defaults(run=export)
    deleting = verb(actions, "delete", "forget a version; its samples stay")
    deleting.add_argument("name", help="of the version")
    deleting.set_defaults(run=delete)


def make(options: argparse.Namespace) -> int:
    """Make a version."""
    body = MakeBody(
        name=options.name,
        service=options.service,
        since=_seconds(options.since),
        until=_seconds(options.until),
        tag=options.tag,
        kind=options.kind,
    )
    info = client(options).post("/datasets", VersionInfo, body, MAKE_S)
    print(f"The dataset version {info.name} has {info.pictures} pictures and the digest {info.digest[:16]}.")
    return EXIT_OK


def _seconds(date: str) -> float | None:
    for form in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S"):
        try:
            return time.mktime(time.strptime(date, form)) if date else None
        except (ValueError, OverflowError):
            continue
    raise Failure(f'{date!r} is no date; one like 2026-11-01 or "2026-11-01 14:30" belongs there, in local time')


def list_versions(options: argparse.Namespace) -> int:
    """Print all versions."""
    versions = client(options).get("/datasets", list[VersionInfo])
    if options.json:
        print_json(versions)
    elif not versions:
        print("There is no dataset version. Make one: edged datasets make NAME --service SERVICE")
    else:
        print_table(
            ("NAME", "SERVICE", "MADE", "PICTURES", "LABELS", "DIGEST"),
            (
                (
                    info.name,
                    info.service,
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(info.made_at)),
                    str(info.pictures),
                    str(len(info.summary.labels)),
                    info.digest[:16],
                )
                for info in versions
            ),
        )
    return EXIT_OK


def show(options: argparse.Namespace) -> int:
    """Print one version."""
    info = client(options).get(f"/datasets/{quote(options.name, safe='')}", VersionInfo)
    if options.json:
        print_json(info)
        return EXIT_OK
    summary = info.summary
    print(f"{info.name}: {summary.pictures} pictures of {info.service} in {summary.groups} groups, {info.digest}")
    if summary.empty:
        print(f"{summary.empty} have no box")
    for label, count in summary.labels.items():
        print(f"{count:>8}  {clean(label)}")
    print("width {} {} {}, height {} {} {} pixels (least, median, largest)".format(*summary.width, *summary.height))
    return EXIT_OK


def export(options: argparse.Namespace) -> int:
    """Write a version."""
    daemon = client(options)
    pictures, left_out = _pictures(daemon, options.name)
    if not pictures:
        raise Failure(f"no picture of {options.name} can be read")
    bar, done = ProgressBar(f"exporting {options.name}"), 0

    def fetch(picture: Picture) -> bytes:
        nonlocal done
        done += 1
        bar.show(done, len(pictures))
        return daemon.data(f"/samples/{picture.file}/picture", MAX_PICTURE_BYTES)

    try:
        write_dataset(Dataset(tuple(pictures), fetch), options.directory, options.format)
    except DatasetError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(f"{options.directory} cannot be written: {error.strerror}") from None
    finally:
        bar.clear()
    print(f"{len(pictures)} pictures are in {options.directory}.")
    if left_out:
        print(f"{len(left_out)} cannot be read and are left out: {', '.join(id[:12] for id in left_out[:10])}")
    return EXIT_PROBLEM if left_out else EXIT_OK


def _pictures(daemon: Client, name: str) -> tuple[list[Picture], list[str]]:
    pictures: list[Picture] = []
    left_out: list[str] = []
    while True:
        after = len(pictures) + len(left_out)
        page = daemon.get(f"/datasets/{quote(name, safe='')}/pictures?after={after}&limit={MAX_PAGE}", PicturesPage)
        if not page.pictures and not page.left_out:
            return sorted(pictures, key=lambda picture: picture.sha256), left_out
        pictures += page.pictures
        left_out += page.left_out


def delete(options: argparse.Namespace) -> int:
    """Forget a version."""
    print(client(options).delete(f"/datasets/{quote(options.name, safe='')}", Done).text)
    return EXIT_OK
