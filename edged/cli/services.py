"""`edged services`: what this device inspects."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from urllib.parse import quote

from edged.api import Done, ServiceText
from edged.cli import packaged
from edged.cli.output import EXIT_OK, EXIT_PROBLEM, Failure, clean, client, print_json, print_table, verb
from edged.status.state import ServiceState
from edgekit.services import MAX_SERVICE

_EXAMPLES = """\
  edged services add solder.toml       add or replace; waits until it is ready
  edged services add ./bottle@1        install a package and inspect with it, with defaults for its task
  edged services list
  edged services show solder           its definition
  edged services recalibrate solder    after the line has changed: certify the gate anew
  edged services remove solder
A definition needs only a name and a model:
  name = "solder"
  model = "solder-small"
  [hard_samples]                       leave this out to ask nobody
  answer_model = "solder-large"        what cloudd answers with"""
_WAIT_S = 180.0


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "services", "list, add, show, recalibrate and remove services", _EXAMPLES)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = verb(actions, "list", "list the services")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=list_services)
    adding = verb(actions, "add", "add or replace a service and wait until it is ready")
    adding.add_argument("file", help="its definition (TOML), - for standard input, or the directory of a package")
    adding.add_argument("--no-wait", action="store_true", help="do not wait until it is ready")
    adding.set_defaults(run=add_service)
    for name, summary, run in (
        ("show", "print the definition of a service", show_service),
        ("recalibrate", "let the gate of a service calibrate anew", recalibrate),
        ("remove", "remove a service", remove_service),
    ):
        action = verb(actions, name, summary)
        action.add_argument("name", help="of the service")
        action.set_defaults(run=run)


def list_services(options: argparse.Namespace) -> int:
    """Print the services."""
    services = client(options).get("/services", list[ServiceState])
    if options.json:
        print_json(services)
    elif not services:
        print("No service runs here yet. Add one: edged services add FILE.toml")
    else:
        print_table(
            ("SERVICE", "STATE", "MODEL", "FROM", "SOURCE", "DEADLINE", "NOTE"),
            (
                (
                    service.name,
                    service.report.state,
                    service.report.model or service.model,
                    service.origin,
                    service.source,
                    f"{service.deadline_ms:g} ms",
                    service.refused or service.report.detail or service.report.gate,
                )
                for service in services
            ),
        )
    return EXIT_OK


def add_service(options: argparse.Namespace) -> int:
    """Add or replace, then say how it went."""
    wait = 0.0 if options.no_wait else _WAIT_S
    path = f"/services?wait_s={wait:g}"
    if Path(options.file).is_dir():
        package = packaged.opened(Path(options.file))
        text = packaged.definition(package)
        if packaged.has_service(options, package.manifest.name):
            raise Failure(f"there is a service {package.manifest.name} already; name the model in its definition")
        packaged.install(options, package)
    else:
        text = _read(options.file)
    service = client(options).post(path, ServiceState, text, timeout_s=wait + 30.0)
    report = service.report
    if service.refused:
        print(f"edged: the new definition of {service.name} does not run: {clean(service.refused)}", file=sys.stderr)
        if service.last_good:
            print("The last good definition goes on.", file=sys.stderr)
        return EXIT_PROBLEM
    if report.state == "ready":
        print(f"The service {service.name} is ready with {report.model}.")
        return EXIT_OK
    if report.state == "loading":
        print(f"The service {service.name} is added but not ready yet: {clean(report.detail) or 'it loads'}.")
        return EXIT_OK if options.no_wait else EXIT_PROBLEM
    print(f"edged: the service {service.name} does not run: {clean(report.detail)}", file=sys.stderr)
    return EXIT_PROBLEM


def show_service(options: argparse.Namespace) -> int:
    """Print the definition as it was given."""
    service = client(options).get(f"/services/{_name(options.name)}", ServiceText)
    sys.stdout.write(service.text if service.text.endswith("\n") else service.text + "\n")
    if service.refused:
        print(f"edged: this definition does not run: {clean(service.refused)}", file=sys.stderr)
    return EXIT_OK


def recalibrate(options: argparse.Namespace) -> int:
    """Forget the certificate."""
    print(client(options).post(f"/services/{_name(options.name)}/recalibrate", Done).text)
    return EXIT_OK


def remove_service(options: argparse.Namespace) -> int:
    """Remove it."""
    print(client(options).delete(f"/services/{_name(options.name)}", Done, timeout_s=60.0).text)
    return EXIT_OK


def _name(name: str) -> str:
    return quote(name, safe="")


def _read(file: str) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_SERVICE + 1) if file == "-" else Path(file).read_bytes()
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Failure(f"{file} is not UTF-8 text; a service definition is a TOML file") from None
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror}") from None
