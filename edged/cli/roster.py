"""`edged roster`: the plant's offline tool. It needs no daemon, and the machine with the key should have no network."""

from __future__ import annotations

import argparse
import getpass
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edged.cli.output import EXIT_OK, Failure, clean, print_json, print_table, verb
from edged.config import state_dir

if TYPE_CHECKING:
    from edged.federation.rosters import Draft

_DRAFT = "a TOML file with the members"
_EXAMPLES = """\
  edged roster key north.pem --passphrase       once: the plant's key, on a machine without a network
  edged roster device                           on each device: its id and key, for the next line
  edged roster add north.toml --plant "North works" MTGNMCG-... 02a9... line-3
  edged roster sign north.toml --key north.pem --days 180 --out north.roster
  edged roster show north.roster
The line that `key` prints belongs into [federation.plants] of every device's edged.toml, the signed file to cloudd."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "roster", "sign which devices may form cohorts (offline; the plant's word)", _EXAMPLES)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    making = verb(actions, "key", "make the plant's key, or show the public key of one that is there")
    making.add_argument("file", type=Path, help="of the private key: keep it offline")
    making.add_argument("--passphrase", action="store_true", help="ask for one that guards the file")
    making.set_defaults(run=key)
    verb(actions, "device", "print this device's id and key, as a roster names it").set_defaults(run=device)
    adding = verb(actions, "add", "add a device to a draft, which is made if it is not there")
    adding.add_argument("draft", type=Path, help=_DRAFT)
    adding.add_argument("device", help="its id")
    adding.add_argument("key", help="its public key, 66 hex digits")
    adding.add_argument("name", nargs="?", default="", help="for people")
    adding.add_argument("--plant", default="", help="the plant's name, for a new draft")
    adding.set_defaults(run=add_member)
    removing = verb(actions, "remove", "remove a device from a draft")
    removing.add_argument("draft", type=Path, help=_DRAFT)
    removing.add_argument("device", help="its id, or the beginning of it")
    removing.set_defaults(run=remove)
    signing = verb(actions, "sign", "sign a draft; its serial rises by one")
    signing.add_argument("draft", type=Path, help=_DRAFT)
    signing.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="of the plant, as edged roster key made it"
    )
    signing.add_argument("--days", type=float, default=180.0, help="it is good for (default: 180)")
    signing.add_argument("--out", type=Path, required=True, metavar="FILE", help="the signed roster, for cloudd")
    signing.set_defaults(run=sign)
    showing = verb(actions, "show", "show a draft or a signed roster")
    showing.add_argument("file", type=Path, help="a draft or a signed roster")
    showing.add_argument("--json", action="store_true", help="print JSON")
    showing.set_defaults(run=show)


def key(options: argparse.Namespace) -> int:
    """Make the plant's key, or show its public half."""
    from edged.federation import rosters

    try:
        if options.file.exists():
            public = rosters.public_text(rosters.open_key(options.file, _ask))
        else:
            public = rosters.new_key(options.file, _ask_twice() if options.passphrase else b"")
            print(
                f"The plant's key is in {options.file}. Whoever has it decides who may learn together: keep it offline."
            )
    except (rosters.RosterError, OSError) as error:
        raise Failure(_text(error, options.file)) from None
    print(f'In edged.toml of every device, under [federation.plants]:\n\n{options.file.stem} = "{public}"')
    return EXIT_OK


def device(options: argparse.Namespace) -> int:
    """Print how a roster names this device."""
    from edged.federation.rosters import public_text
    from edgekit.identity import IdentityError, device_id, load_key

    path = state_dir(options.state) / "identity" / "device-key.pem"
    try:
        own = load_key(path)
    except (IdentityError, OSError) as error:
        raise Failure(f"{_text(error, path)} (start edged once, and ask as its user, or with --state DIR)") from None
    print(f"{device_id(own.public_key())} {public_text(own)}")
    return EXIT_OK


def add_member(options: argparse.Namespace) -> int:
    """Add a device to a draft."""
    from edged.federation import rosters

    try:
        if options.draft.exists():
            draft = rosters.read_draft(options.draft)
        elif options.plant:
            draft = rosters.Draft(plant=options.plant)
        else:
            raise Failure(f"there is no draft {options.draft}; name the plant with --plant to begin one")
        one = rosters.DraftMember(device=options.device, key=options.key.lower(), name=options.name)
        draft = rosters.with_members(draft, [one])
        rosters.write_draft(options.draft, draft)
    except (rosters.RosterError, OSError) as error:
        raise Failure(_text(error, options.draft)) from None
    print(f"The draft lists {_devices(len(draft.member))}. Sign it with edged roster sign {options.draft} --key KEY")
    return EXIT_OK


def remove(options: argparse.Namespace) -> int:
    """Remove a device from a draft."""
    from edged.federation import rosters

    try:
        draft = rosters.without(rosters.read_draft(options.draft), options.device)
        rosters.write_draft(options.draft, draft)
    except (rosters.RosterError, OSError) as error:
        raise Failure(_text(error, options.draft)) from None
    print(f"The draft lists {_devices(len(draft.member))}. It counts when it is signed and every device has it.")
    return EXIT_OK


def sign(options: argparse.Namespace) -> int:
    """Sign a draft."""
    from edged.federation import rosters
    from edgekit.atomic import write_file

    try:
        private = rosters.open_key(options.key, _ask)
        data, after = rosters.sign(rosters.read_draft(options.draft), private, now=time.time(), days=options.days)
        rosters.write_draft(options.draft, after)  # first: two rosters of one serial shut the plant's devices out
        write_file(options.out, data, 0o644)
    except (rosters.RosterError, OSError) as error:
        raise Failure(_text(error, options.draft)) from None
    until = time.strftime("%Y-%m-%d", time.localtime(time.time() + options.days * rosters.DAY))
    print(f"{options.out}: serial {after.serial}, {_devices(len(after.member))}, until {until}. Give it to cloudd.")
    return EXIT_OK


def show(options: argparse.Namespace) -> int:
    """Show a draft or a signed roster."""
    from edged.federation import rosters

    try:
        data = options.file.read_bytes()
        if not data.lstrip().startswith(b"{"):
            draft = rosters.read_draft(options.file)
            _show_draft(draft, options.json)
            return EXIT_OK
        roster, _ = rosters.read_signed(data, {})
    except (rosters.RosterError, OSError) as error:
        raise Failure(_text(error, options.file)) from None
    if options.json:
        print_json(roster)
        return EXIT_OK
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(roster.not_after))
    print(f"{clean(roster.plant)}, serial {roster.serial}, good until {until}. The devices check its signature.")
    print_table(("DEVICE", "KEY"), [(one.device, one.key.hex()) for one in roster.members])
    return EXIT_OK


def _show_draft(draft: Draft, as_json: bool) -> None:
    if as_json:
        print_json(draft)
        return
    print(f"Draft of {clean(draft.plant)}; serial {draft.serial} was signed last.")
    print_table(("DEVICE", "KEY", "NAME"), [(one.device, one.key, one.name) for one in draft.member])


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"


def _ask() -> bytes:
    return getpass.getpass("Passphrase of the plant's key: ").encode()


def _ask_twice() -> bytes:
    first = getpass.getpass("Passphrase for the plant's key: ")
    if not first or first != getpass.getpass("The same again: "):
        raise Failure("the passphrases differ, or there is none")
    return first.encode()


def _text(error: Exception, path: Path) -> str:
    return f"{path}: {error.strerror or error}" if isinstance(error, OSError) else str(error)
