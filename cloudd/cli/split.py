"""`cloudd split`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cloudd.cli import common, making
from cloudd.client import ClientError
from edgekit.packages import PackageError, open_package
from edgekit.text import printable

if TYPE_CHECKING:
    from cloudd.split import Outcome, Request

_DETAILS = """\
  cloudd split solder-large
  cloudd split solder-large@2 --cuts 3 --whole

For pictures that may not leave their site: the device computes the first half, the head, and sends what comes out of
it, the features; cloudd computes the rest, the tail. Two packages are made and registered: NAME-head for devices, and
NAME-tail, which never leaves cloudd. A service names the head; its device measures its own speed and the link, and
picks the cut, or none. The packages stay in the folder --out as well.

Cuts are chosen so that they suit slow links and fast ones. Each is proved: both halves together answer what the whole
answers, and every sample of the package stays right with its features rounded as they are sent. What fails is refused
with the reason. In each package split/lineage.json says where it came from and how it was proved.

Features are not anonymous: pictures can be rebuilt from them, from those of an early cut quite well. --least-work sets
what share of the model's work every head must do.

With --whole the head package has the whole model, too, so that the device can run all of it where that is quicker.

Exit status: 0 done, 1 the model cannot be split or something is wrong, 2 wrong usage, 3 the daemon is needed but not
reachable."""


def add(verbs: common.Verbs) -> None:
    """Register the verb."""
    parser = common.verb(
        verbs, "split", "Cut a model in two: a head for devices, a tail for this cloudd.", _do, _DETAILS
    )
    parser.add_argument(
        "model", metavar="MODEL", help="NAME or NAME@VERSION of a registered model, or directory of a package"
    )
    parser.add_argument("--cuts", type=_cuts, metavar="N", help="how many cuts a device may choose from, 1 to 7 (4)")
    parser.add_argument("--whole", action="store_true", help="put the whole model into the head package as well")
    parser.add_argument(
        "--least-work", type=_share, metavar="SHARE", help="of the model's work that every head does (0.1)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="folder that gets the new packages (this folder)"
    )
    parser.add_argument(
        "--version", type=making.version, metavar="VERSION", help="of the new packages (that of the model)"
    )
    parser.add_argument("--no-register", action="store_true", help="make the packages only; needs no daemon")


def _do(args: argparse.Namespace) -> int:
    from cloudd import split  # the other verbs must not wait for numpy and the runtime
    from edgekit.runtimes import ModelError

    line = making.Line()
    try:
        package = open_package(making.directory(args))
        wishes = {"cuts": args.cuts, "least_work": args.least_work}
        request = split.Request(
            package=package,
            out=args.out,
            version=args.version or package.manifest.version,
            whole=args.whole,
            **{name: value for name, value in wishes.items() if value is not None},
        )
        if not args.no_register:
            _check_new(args, request)
        os.nice(making.NICE)
        outcome = split.split(request, line.show)
    except (PackageError, ModelError) as error:
        return line.refused(error)
    finally:
        line.clear()
    if not args.no_register:
        making.register(args, outcome.tail_package)
        making.register(args, outcome.head_package)
    if args.json:
        common.show_json(msgspec.to_builtins(outcome))
    else:
        _show(outcome, not args.no_register)
    return 0


def _check_new(args: argparse.Namespace, request: Request) -> None:
    """Raise PackageError, before minutes of work, if the daemon has another package of the head's name and version."""
    try:
        common.client(args).get(common.path("models", request.head))
    except ClientError as error:
        if error.status != 404:
            raise
        return
    raise PackageError(f"{request.head} is registered already; give the new packages another --version")


def _show(outcome: Outcome, registered: bool) -> None:
    lineage = outcome.lineage
    print(
        f"{lineage.source.model} takes {outcome.whole_ms:.3g} ms here and can be cut in {lineage.places} places; "
        f"proved on {lineage.pictures} pictures, {lineage.samples} of them samples of the package."
    )
    rows = [
        (
            cut.name,
            " + ".join(cut.shapes),
            f"{cut.work:.1%}",
            f"{cut.wire_bytes / 1e3:.1f} KB",
            f"{outcome.tail_ms[cut.name]:.3g} ms",
            f"{cut.difference:.1g}",
            f"{cut.sent_difference:.1g}",
        )
        for cut in lineage.cuts
    ]
    common.show_table(("CUT", "CROSSES", "WORK BEFORE", "SENT", "TAIL HERE", "DIFFERENCE", "AS SENT"), rows, "")
    for one in lineage.refused:
        print(f"{one.name} was refused: {printable(one.reason)}.")
    if registered:
        print(f'{outcome.head} and {outcome.tail} are registered; a service splits with heads = "{outcome.head}".')
    else:
        print(f"{outcome.head_package} and {outcome.tail_package} are made; register the tail first:")
        print(f"  cloudd models add {outcome.tail_package} && cloudd models add {outcome.head_package}")


def _cuts(text: str) -> int:
    """How many cuts. Raises argparse.ArgumentTypeError."""
    if text not in tuple("1234567"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of cuts; write a whole number from 1 to 7")
    return int(text)


def _share(text: str) -> float:
    """0 to 1. Raises argparse.ArgumentTypeError."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0.0 <= share < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write a number from 0 to 1, such as 0.25")
    return share
