"""`edged inspect`: post pictures to a service, as a camera would, and show the decisions."""

from __future__ import annotations

import argparse
import http.client
import sys
from pathlib import Path
from urllib.parse import quote

import msgspec

from edged.api import Problem
from edged.cli.output import EXIT_OK, EXIT_PROBLEM, Failure, clean, client, print_table, verb
from edged.client import NotRunning
from edged.status.state import StatusState
from edgekit.messages import Decision

_EXAMPLES = """\
  edged inspect solder board1.jpg board2.png
  edged inspect solder --json *.jpg | jq .label       one JSON line a picture
Exit status 1 if a picture could not be inspected."""
MAX_PICTURE = 64 << 20
"""Bytes. The daemon's own limit is lower and its refusal is clearer; this only keeps a wrong file out of memory."""
_KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}
_ANSWER_S = 60.0


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "inspect", "inspect pictures with a service", _EXAMPLES)
    parser.add_argument("service", help="its name")
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="JPEG or PNG")
    parser.add_argument("--serial", default="", help="serial number of the board")
    parser.add_argument("--deadline-ms", type=float, help="deadline instead of the service's own")
    parser.add_argument("--json", action="store_true", help="print one JSON line a picture")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Post the pictures one after the other over one connection."""
    address = client(options).get("/status", StatusState).addresses.inference
    path = f"/v1/services/{quote(options.service, safe='')}/inspect"
    if options.deadline_ms is not None:
        path += f"?deadline_ms={options.deadline_ms:g}"
    host, _, port = address.rpartition(":")
    reachable = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(host, host.strip("[]"))  # noqa: S104
    connection = http.client.HTTPConnection(reachable, int(port), timeout=_ANSWER_S)
    rows: list[tuple[str, ...]] = []
    status = EXIT_OK
    for file in options.files:
        try:
            decision = _inspect(connection, path, file, options.serial)
        except Failure as error:
            print(f"edged: {clean(str(error))}", file=sys.stderr)
            status = EXIT_PROBLEM
            continue
        if options.json:
            print(msgspec.json.encode(decision).decode(), flush=True)
        else:
            rows.append(_row(file, decision))
    connection.close()
    if rows:
        print_table(("FILE", "LABEL", "SCORE", "DECIDED", "MODEL", "TIME", "NOTE"), rows)
    return status


def _inspect(connection: http.client.HTTPConnection, path: str, file: Path, serial: str) -> Decision:
    try:
        if file.stat().st_size > MAX_PICTURE:
            raise Failure(f"{file} has more than {MAX_PICTURE} bytes; that is no picture for inspection")
        picture = file.read_bytes()
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror}") from None
    kind = next((kind for magic, kind in _KINDS.items() if picture.startswith(magic)), "application/octet-stream")
    headers = {"Content-Type": kind, **({"Edged-Serial": serial} if serial else {})}
    try:
        connection.request("POST", path, picture, headers)
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise NotRunning(f"the inference port {connection.host}:{connection.port} does not answer: {error}") from None
    try:
        if response.status != 200:
            raise Failure(f"{file}: {msgspec.json.decode(data, type=Problem).error}")
        return msgspec.json.decode(data, type=Decision)
    except msgspec.DecodeError:
        raise Failure(f"{file}: the worker answered with HTTP status {response.status}") from None


def _row(file: Path, decision: Decision) -> tuple[str, ...]:
    notes = [
        decision.verdict,
        f"{decision.defects} {'defect' if decision.defects == 1 else 'defects'}" if decision.defects else "",
        f"sent: {decision.sent}" if decision.sent else "",
        "waits in the spool" if decision.spooled else "",
        "certified" if decision.certified else "",
        decision.reason,
    ]
    total = decision.timings_ms.get("total")
    return (
        file.name,
        decision.label,
        f"{decision.score:.3f}",
        decision.decided,
        decision.model,
        "-" if total is None else f"{total:.1f} ms",
        ", ".join(filter(None, notes)),
    )
