"""`edged learning`: what the models of this device learn, and a word in it."""

from __future__ import annotations

import argparse
import getpass
import time
from typing import get_args
from urllib.parse import quote

from edged.api import Done
from edged.cli.output import EXIT_OK, add_limit, clean, client, print_json, print_table, verb
from edged.learning.bodies import LearningState, OrderBody, StartBody
from edgekit.learning.records import Record
from edgekit.services.learning import LearningRung

_EXAMPLES = """\
  edged learning show                      what is learned here, and where it stands
  edged learning show solder               the candidate on trial, with its numbers
  edged learning start solder              learn now, by whatever means is the right one
  edged learning start solder --rung head  by this one
  edged learning go solder                 end the shadow (then it decides), or the probation (then it is kept)
  edged learning stop solder               end the job, or send the candidate away
  edged learning revert solder             back to the model of the definition, also from what was kept
  edged learning log solder                every decision with its numbers
A service learns if its definition has a table [learning]."""
_START_S = 60.0


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "learning", "see and steer what models learn on this device", _EXAMPLES)
    parser.set_defaults(run=show, service="", json=False)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    showing = verb(actions, "show", "show where learning stands (also without an action)")
    showing.add_argument("service", nargs="?", default="", help="a service (default: all)")
    showing.add_argument("--json", action="store_true", help="print JSON")
    showing.set_defaults(run=show)
    starting = verb(actions, "start", "learn now")
    starting.add_argument("service", help="its name")
    starting.add_argument("--rung", choices=get_args(LearningRung), help="by this means (default: the ladder chooses)")
    _author(starting)
    starting.set_defaults(run=start)
    for name, summary in (
        ("go", "end the present stage of the candidate: on to the next one"),
        ("stop", "end the job, or send the candidate away"),
        ("revert", "let the definition's own model decide again"),
    ):
        action = verb(actions, name, summary)
        action.add_argument("service", help="its name")
        _author(action)
        action.set_defaults(run=order, order=name)
    logging = verb(actions, "log", "print what was decided, and by which numbers")
    logging.add_argument("service", help="its name")
    add_limit(logging, 20)
    logging.add_argument("--json", action="store_true", help="print JSON")
    logging.set_defaults(run=log)


def _author(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--author", default="", help="who says so (default: your user name)")


def show(options: argparse.Namespace) -> int:
    """Print where learning stands."""
    daemon = client(options)
    if options.service:
        state = daemon.get(f"/learning/{quote(options.service, safe='')}", LearningState)
        if options.json:
            print_json(state)
        else:
            _print_one(state)
        return EXIT_OK
    states = daemon.get("/learning", list[LearningState])
    if options.json:
        print_json(states)
    elif not states:
        print("Nothing is learned here. A service learns if its definition has a table [learning].")
    else:
        print_table(
            ("SERVICE", "STAGE", "MODEL", "LEARNED", "CANDIDATE", "WHERE IT STANDS"),
            (
                (one.service, one.stage, one.base or "-", one.learned or "-", one.candidate or "-", one.sentence)
                for one in states
            ),
        )
    return EXIT_OK


def _print_one(state: LearningState) -> None:
    rows = [("service", state.service), ("stage", state.stage), ("", state.sentence)]
    decides = state.learned or (f"{state.candidate}, on probation" if state.stage == "probation" else state.base)
    rows += [("model", state.base), ("decides", decides)]
    if state.stock is not None and state.wanted:
        rows.append(("labelled", f"{state.stock.known} of about {state.wanted} that a judgement needs"))
    if state.rung:
        rows.append(("job", f"{state.job}: {state.rung}"))
    if state.step:
        rows.append(("progress", f"{state.step}, {state.done} of {state.total}" if state.total else state.step))
    if state.candidate:
        rows.append(("candidate", state.candidate))
    if state.stage == "shadow" and state.shadow is not None:
        tally = state.shadow
        rows += [
            ("pictures", f"{tally.items} of {state.shadow_items}, agreeing on {tally.agreeing}"),
            ("audits", f"{tally.audits} of {state.shadow_audits}, {tally.lost} lost and {tally.gained} gained"),
            ("would send", f"{tally.would_send}, the present model {tally.sent}"),
        ]
    if state.stage == "probation":
        rows.append(("pictures", f"{state.probation_items} of {state.probation_wanted}"))
    for name, text in rows:
        print(f"{name + ':' if name else '':<12} {clean(text)}")
    if state.last is not None:
        print("Last decision:")
        _print_record(state.last)


def start(options: argparse.Namespace) -> int:
    """Ask for learning."""
    body = StartBody(by=_name(options), rung=options.rung)
    print(clean(client(options).post(_path(options, "start"), Done, body, _START_S).text))
    return EXIT_OK


def order(options: argparse.Namespace) -> int:
    """Pass an order on."""
    body = OrderBody(by=_name(options))
    print(clean(client(options).post(_path(options, options.order), Done, body, _START_S).text))
    return EXIT_OK


def log(options: argparse.Namespace) -> int:
    """Print what was decided, the newest first."""
    records = client(options).get(f"{_path(options, 'log')}?limit={options.limit}", list[Record])
    if options.json:
        print_json(records)
        return EXIT_OK
    for record in records:
        _print_record(record)
    if not records:
        print("Nothing was decided yet.")
    return EXIT_OK


def _print_record(record: Record) -> None:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.at))
    candidate = f" {record.candidate[:12]}" if record.candidate else ""
    print(f"{at}  {record.event}{candidate}: {clean(record.sentence)}")
    for fact in record.facts:
        print(f"    {'ok ' if fact.passed else 'NO '} {fact.name}: {clean(fact.text)}")


def _path(options: argparse.Namespace, action: str) -> str:
    return f"/learning/{quote(options.service, safe='')}/{action}"


def _name(options: argparse.Namespace) -> str:
    return (options.author or getpass.getuser())[:64]
