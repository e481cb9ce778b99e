"""`edged install` and `edged uninstall`: the daemons as system services."""

from __future__ import annotations

import argparse
from pathlib import Path

from edged import install
from edged.cli.output import EXIT_OK, Failure, verb

_INSTALL_EXAMPLES = """\
  sudo /opt/edged/bin/edged install --now        edged runs, and starts at every boot
  sudo /opt/edged/bin/edged install cloudd       place the units of cloudd; the command to start it is printed
  edged install --root ./image --prefix /opt/edged/bin
                                                 into the file system of an image that boots later"""
_UNINSTALL_EXAMPLES = """\
  sudo edged uninstall                           stop it and remove the units; identity, models and samples stay
  sudo edged uninstall --purge                   remove these too, and the user"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define both verbs."""
    parser = verb(subparsers, "install", "run as a system service, with systemd", _INSTALL_EXAMPLES)
    _add_common(parser)
    parser.add_argument(
        "--prefix", metavar="DIR", type=Path, help="directory of the programs (default: where this one lies)"
    )
    parser.add_argument("--now", action="store_true", help="enable and start it too")
    parser.set_defaults(run=_install)
    parser = verb(subparsers, "uninstall", "remove the system service", _UNINSTALL_EXAMPLES)
    _add_common(parser)
    parser.add_argument("--purge", action="store_true", help="also remove its data, configuration and user")
    parser.set_defaults(run=_uninstall)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("daemon", nargs="?", choices=sorted(install.PRODUCTS), default="edged", help="default: edged")
    parser.add_argument(
        "--root", metavar="DIR", type=Path, default=Path("/"), help="root of another file system (default: /)"
    )


def _install(options: argparse.Namespace) -> int:
    try:
        install.install(install.PRODUCTS[options.daemon], options.root.absolute(), options.prefix, options.now)
    except install.InstallError as error:
        raise Failure(str(error)) from error
    return EXIT_OK


def _uninstall(options: argparse.Namespace) -> int:
    try:
        install.uninstall(install.PRODUCTS[options.daemon], options.root.absolute(), options.purge)
    except install.InstallError as error:
        raise Failure(str(error)) from error
    return EXIT_OK
