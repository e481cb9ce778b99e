"""`edged doctor`: what is wrong and what to do, with the daemon or without it."""

from __future__ import annotations

import argparse

from edged import config
from edged.api import Finding
from edged.cli.output import EXIT_OK, EXIT_PROBLEM, clean, client, print_json, verb
from edged.client import NotRunning

_EXAMPLES = """\
  edged doctor
  edged doctor --json | jq '.[] | select(.level != "ok")'
Works without a running daemon too, with fewer checks. Exit status 1 if a check found an error."""
_MARKS = {"ok": "ok   ", "warning": "WARN ", "error": "ERROR"}
_DOCTOR_S = 300.0


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "doctor", "check everything and say what to do", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings."""
    try:
        findings = client(options).get("/doctor", list[Finding], timeout_s=_DOCTOR_S)
    except NotRunning as error:
        findings = _without_daemon(options.state, str(error))
    if options.json:
        print_json(findings)
    else:
        for finding in findings:
            print(f"{_MARKS[finding.level]}  {finding.title}: {clean(finding.text)}")
            if finding.remedy:
                print(f"       -> {clean(finding.remedy)}")
    return EXIT_PROBLEM if any(finding.level == "error" for finding in findings) else EXIT_OK


def _without_daemon(state: str | None, why: str) -> list[Finding]:
    from edged.status import doctor  # certificates and packages are read only here

    findings = doctor.examine(doctor.Examination(state_dir=config.state_dir(state)))
    first = Finding(id="daemon", title="Daemon", level="error", text=why, remedy="start it: edged run")
    return [first, *(finding for finding in findings if finding.id != "daemon")]
