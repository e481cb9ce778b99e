"""`edged doctor`: what is wrong, what to do, and how the hardware is used; with the daemon or without it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from edged import config
from edged.api import ApiError, Finding
from edged.cli import hardware_text
from edged.cli.output import EXIT_OK, EXIT_PROBLEM, Failure, clean, client, print_json, verb
from edged.client import NotRunning
from edged.status.hardware import HardwareReport

_EXAMPLES = """\
  edged doctor
  edged doctor --json | jq '.findings[] | select(.level != "ok")'
  edged doctor --record board.tree     what this device is, without serial numbers, addresses and names, to send along
Works without a running daemon too, with fewer checks. Exit status 1 if a check found an error."""
_MARKS = {"ok": "ok   ", "warning": "WARN ", "error": "ERROR"}
_DOCTOR_S = 300.0


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints."""

    findings: list[Finding]
    hardware: HardwareReport


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "doctor", "check everything and say what to do", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print findings and hardware as JSON")
    parser.add_argument(
        "--record", metavar="FILE.tree", help="only record this device's hardware, anonymously (- for the output)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings and the hardware."""
    if options.record is not None:
        return _record(options.record)
    try:
        daemon = client(options)
        findings = daemon.get("/doctor", list[Finding], timeout_s=_DOCTOR_S)
        hardware = daemon.get("/hardware", HardwareReport, timeout_s=_DOCTOR_S)
    except NotRunning as error:
        findings = _without_daemon(options.state, str(error))
        hardware = _hardware_alone(options.state)
    except ApiError as error:
        if error.status != 404:
            raise
        raise Failure("the running edged is older than this command and knows no hardware; restart it") from None
    if options.json:
        print_json(Examined(findings=findings, hardware=hardware))
    else:
        for finding in findings:
            print(f"{_MARKS[finding.level]}  {finding.title}: {clean(finding.text)}")
            if finding.remedy:
                print(f"       -> {clean(finding.remedy)}")
        print()
        for line in hardware_text.lines(hardware):
            print(line)
    return EXIT_PROBLEM if any(finding.level == "error" for finding in findings) else EXIT_OK


def _without_daemon(state: str | None, why: str) -> list[Finding]:
    from edged.status import doctor  # certificates and packages are read only here

    findings = doctor.examine(doctor.Examination(state_dir=config.state_dir(state)))
    first = Finding(id="daemon", title="Daemon", level="error", text=why, remedy="start it: edged run")
    return [first, *(finding for finding in findings if finding.id != "daemon")]


def _hardware_alone(state: str | None) -> HardwareReport:
    from edged.inventory import without_daemon

    return without_daemon(config.state_dir(state))


def _record(name: str) -> int:
    from edged.hardware.host import RealHost
    from edged.hardware.record import record

    tree = record(RealHost())
    if name == "-":
        sys.stdout.write(tree)
        return EXIT_OK
    path = Path(name)
    try:
        path.write_text(tree, "utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror or error}") from None
    print(f"{path} holds {len(tree.splitlines())} lines about this device. Look through it before you send it.")
    return EXIT_OK
