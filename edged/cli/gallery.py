"""`edged gallery`: who an identity service knows."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

from edged.api import ApiError, Done
from edged.cli import packaged
from edged.cli.output import EXIT_OK, EXIT_PROBLEM, Failure, ProgressBar, clean, client, print_json, print_table, verb
from edged.gallery.records import EnrolReply, GalleryInfo, counted

_EXAMPLES = """\
  edged gallery enrol door ./people                 a folder for each person: people/NAME/*.jpg
  edged gallery enrol parts ./parts --package ./parts@1
                                                    the same for a new service: installs its model, adds it, enrols
  edged gallery enrol door anna1.jpg anna2.jpg --as Anna
  edged gallery strangers door ./visitors           pictures of others: they make the threshold certain
  edged gallery list door
  edged gallery remove door Anna                    for ever; no picture of her was ever kept
  edged gallery clear door --strangers"""
_SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_PICTURE = 16 << 20
_UPLOAD_S = 60.0
_PATIENCE_S = 30.0
_REPORT_S = 1.5  # after which the service has told where its gallery stands now


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "gallery", "enrol, list and forget who an identity service knows", _EXAMPLES)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = verb(actions, "list", "list who is enrolled, and where the threshold stands")
    listing.add_argument("service", metavar="SERVICE", help="an identity service")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=show)
    enrolling = verb(actions, "enrol", "enrol people or parts by pictures of them")
    enrolling.add_argument("service", metavar="SERVICE", help="an identity service")
    enrolling.add_argument(
        "sources", nargs="+", type=Path, metavar="DIR|PICTURE", help="a folder for each, or pictures"
    )
    enrolling.add_argument("--as", dest="name", default="", metavar="NAME", help="whom all these pictures show")
    enrolling.add_argument("--force", action="store_true", help="also pictures that look like somebody else")
    enrolling.add_argument("--package", type=Path, metavar="DIR", help="add the service with this embedding package")
    enrolling.set_defaults(run=enrol)
    others = verb(actions, "strangers", "bring pictures of others, to certify the threshold with")
    others.add_argument("service", metavar="SERVICE", help="an identity service")
    others.add_argument("sources", nargs="+", type=Path, metavar="DIR|PICTURE", help="a folder of them, or pictures")
    others.add_argument("--force", action="store_true", help="also pictures that look like somebody who is enrolled")
    others.set_defaults(run=strangers)
    removing = verb(actions, "remove", "forget somebody for ever")
    removing.add_argument("service", metavar="SERVICE", help="an identity service")
    removing.add_argument("name", metavar="NAME", help="as it was enrolled")
    removing.set_defaults(run=remove)
    clearing = verb(actions, "clear", "forget everybody, or only some")
    clearing.add_argument("service", metavar="SERVICE", help="an identity service")
    which = clearing.add_mutually_exclusive_group(required=True)
    for what, text in (
        ("everybody", "everybody who is enrolled, and all strangers"),
        ("strangers", "the pictures of strangers"),
        ("unreadable", "what cannot be read: damaged, or sealed with a key that is lost"),
    ):
        which.add_argument(f"--{what}", dest="what", action="store_const", const=what, help=text)
    clearing.set_defaults(run=clear)


def show(options: argparse.Namespace) -> int:
    """Print who is enrolled."""
    info = client(options).get(_path(options), GalleryInfo)
    if options.json:
        print_json(info)
        return EXIT_OK
    if info.identities:
        print_table(
            ("IDENTITY", "PICTURES", "NEWEST", "BY", "MODEL"),
            (
                (
                    one.name,
                    str(one.pictures),
                    time.strftime("%Y-%m-%d %H:%M", time.localtime(one.at)),
                    one.by or "-",
                    " ".join(one.models),
                )
                for one in info.identities
            ),
        )
    people = counted(len(info.identities), "identity", "identities")
    print(f"{people}, {counted(info.strangers, 'picture')} of strangers.")
    if info.unreadable:
        unreadable = counted(info.unreadable, "picture")
        print(f"Not readable: {unreadable}; forget them: edged gallery clear {info.service} --unreadable")
    print(clean(info.sentence) or "The service does not run now.")
    return EXIT_OK


def enrol(options: argparse.Namespace) -> int:
    """Enrol pictures."""
    found = list(_named(options.sources, options.name))
    if options.package is not None:
        package = packaged.opened(options.package)
        if package.manifest.task != "embedding":
            raise Failure(f'{package.ref} has the task "{package.manifest.task}"; a gallery needs "embedding"')
        if not packaged.has_service(options, options.service):
            packaged.install(options, package)
            packaged.serve(options, packaged.definition(package, options.service))
            print(f"The service {options.service} is ready with {package.ref}.")
    return _bring(options, found)


def strangers(options: argparse.Namespace) -> int:
    """Bring pictures of others."""
    return _bring(options, [("", path) for source in options.sources for path in _pictures(source)])


def remove(options: argparse.Namespace) -> int:
    """Forget somebody."""
    print(client(options).delete(f"{_path(options)}/identities?{urlencode({'name': options.name})}", Done).text)
    return EXIT_OK


def clear(options: argparse.Namespace) -> int:
    """Forget many."""
    print(client(options).delete(f"{_path(options)}?{urlencode({'what': options.what})}", Done).text)
    return EXIT_OK


def _bring(options: argparse.Namespace, found: list[tuple[str, Path]]) -> int:
    if not found:
        raise Failure("there are no pictures; JPEG and PNG files are read, in a folder for each identity")
    bar = ProgressBar(f"enrolling in {options.service}")
    new, known, refused = 0, 0, []
    try:
        for at, (name, path) in enumerate(found):
            bar.show(at, len(found))
            try:
                reply = _post(options, name, path)
            except ApiError as error:
                if error.status not in (400, 409, 413):
                    raise
                refused.append(f"{path}: {error}")
                continue
            new, known = new + reply.new, known + (not reply.new)
    finally:
        bar.clear()
    people = len({name for name, _ in found if name})
    what = f"of {counted(people, 'identity', 'identities')}" if people else "of strangers"
    print(f"{options.service}: {counted(new, 'new picture')} {what}, {known} were there already.")
    for text in refused[:10]:
        print(f"edged: not enrolled: {clean(text)}", file=sys.stderr)
    if len(refused) > 10:
        print(f"edged: {len(refused) - 10} more were not enrolled", file=sys.stderr)
    time.sleep(_REPORT_S)
    print(clean(client(options).get(_path(options), GalleryInfo).sentence))
    return EXIT_PROBLEM if refused else EXIT_OK


def _post(options: argparse.Namespace, name: str, path: Path) -> EnrolReply:
    """Bring one picture; a worker that is just being replaced gets it a little later."""
    try:
        if path.stat().st_size > _MAX_PICTURE:
            raise ApiError(413, f"it has more than {_MAX_PICTURE >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from None
    query = urlencode({"identity": name, "by": getpass.getuser(), "force": "1" if options.force else ""})
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return client(options).post(f"{_path(options)}/pictures?{query}", EnrolReply, data, _UPLOAD_S)
        except ApiError as error:
            if error.status != 503 or time.monotonic() > until:
                raise
        time.sleep(1.0)


def _named(sources: list[Path], name: str) -> Iterator[tuple[str, Path]]:
    """Whom each picture shows, and the picture."""
    for source in sources:
        if name:
            yield from ((name, path) for path in _pictures(source))
        elif source.is_dir():
            for folder in sorted(one for one in source.iterdir() if one.is_dir() and not one.name.startswith(".")):
                yield from ((folder.name, path) for path in _pictures(folder))
        else:
            raise Failure(f"say whom {source} shows: --as NAME; or name a folder with a folder for each identity")


def _pictures(source: Path) -> Iterator[Path]:
    """A picture, or those below a folder."""
    if source.is_dir():
        yield from sorted(one for one in source.rglob("*") if one.suffix.lower() in _SUFFIXES and one.is_file())
    elif source.exists():
        yield source
    else:
        raise Failure(f"{source} does not exist")


def _path(options: argparse.Namespace) -> str:
    return f"/gallery/{quote(options.service, safe='')}"
