"""`edged models`: the model packages on this device."""

from __future__ import annotations

import argparse
from pathlib import Path
from urllib.parse import quote

from edged.api import Done, ModelBody, ServeBody
from edged.cli import packaged
from edged.cli.output import EXIT_OK, Failure, client, print_json, print_table, size, verb
from edged.status.state import ModelState, ServedState

_EXAMPLES = """\
  edged models list
  edged models add ./solder-small          install a package from a directory
  edged models pull solder-small@1.2.0     fetch it from cloudd, resuming what an interruption left
  edged models remove solder-small@1.1.0
  edged models serve resnet50              serve it over the Open Inference Protocol, without a service
  edged models unserve resnet50
  edged models seal ./solder-small         finish a package of your own: list its files with their hashes"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Define the verb."""
    parser = verb(subparsers, "models", "list, add, pull, remove and seal models", _EXAMPLES)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = verb(actions, "list", "list the installed models")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=list_models)
    adding = verb(actions, "add", "install the package in a directory")
    adding.add_argument("directory", type=Path, help="with a package.toml")
    adding.set_defaults(run=add_model)
    pulling = verb(actions, "pull", "fetch a model from cloudd")
    pulling.add_argument("ref", help="NAME (the newest version) or NAME@VERSION")
    pulling.set_defaults(run=pull_model)
    removing = verb(actions, "remove", "remove an installed model that no service uses")
    removing.add_argument("ref", help="NAME@VERSION")
    removing.set_defaults(run=remove_model)
    serving = verb(actions, "serve", "serve an installed model without a service, over the Open Inference Protocol")
    serving.add_argument("ref", help="NAME (the newest installed version) or NAME@VERSION")
    serving.add_argument("--wait", type=float, default=120.0, metavar="S", help="longest wait for it (default: 120)")
    serving.set_defaults(run=serve_model)
    unserving = verb(actions, "unserve", "serve a model no longer")
    unserving.add_argument("ref", help="NAME or NAME@VERSION")
    unserving.set_defaults(run=unserve_model)
    sealing = verb(actions, "seal", "make a package of a directory whose package.toml lists no files yet")
    sealing.add_argument("directory", type=Path, help="with the model and a package.toml")
    sealing.set_defaults(run=seal_model)


def list_models(options: argparse.Namespace) -> int:
    """Print what is installed."""
    models = client(options).get("/models", list[ModelState])
    if options.json:
        print_json(models)
    elif not models:
        print("No model is installed. Add one: edged models add DIR")
    else:
        print_table(
            ("MODEL", "TASK", "VARIANTS", "SIZE", "USED BY", "DESCRIPTION"),
            (
                (
                    f"{model.name}@{model.version}",
                    model.task,
                    " ".join(model.variants),
                    size(model.size),
                    " ".join([*model.used_by, *(["(served)"] if model.served else [])]) or "-",
                    model.description,
                )
                for model in models
            ),
        )
    return EXIT_OK


def add_model(options: argparse.Namespace) -> int:
    """Install from a directory."""
    directory: Path = options.directory.absolute()
    if not directory.is_dir():
        raise Failure(f"{directory} is no directory; a model package is a directory with a package.toml")
    print(f"Installed {packaged.bring(options, directory.name, ModelBody(path=str(directory)))}.")
    return EXIT_OK


def pull_model(options: argparse.Namespace) -> int:
    """Fetch from cloudd."""
    print(f"Fetched {packaged.bring(options, options.ref, ModelBody(ref=options.ref))}.")
    return EXIT_OK


def remove_model(options: argparse.Namespace) -> int:
    """Remove a package."""
    print(client(options).delete(f"/models/{quote(options.ref, safe='@')}", Done).text)
    return EXIT_OK


def serve_model(options: argparse.Namespace) -> int:
    """Serve a model without a service."""
    body, timeout = ServeBody(ref=options.ref), options.wait + 30
    state = client(options).post(f"/served?wait_s={options.wait:g}", ServedState, body, timeout)
    print(f"{state.model} is served: /v2/models/{state.model.partition('@')[0]}/infer at the inference address.")
    return EXIT_OK


def unserve_model(options: argparse.Namespace) -> int:
    """Serve it no longer."""
    print(client(options).delete(f"/served/{quote(options.ref, safe='@')}", Done).text)
    return EXIT_OK


def seal_model(options: argparse.Namespace) -> int:
    """List the files of a package in its package.toml. Needs no daemon."""
    from edgekit.packages import PackageError, read_draft, seal_package

    directory: Path = options.directory
    try:
        package = seal_package(directory, read_draft(directory))
    except PackageError as error:
        raise Failure(f"{directory} cannot be sealed: {error}") from None
    except OSError as error:
        raise Failure(f"{directory} cannot be sealed: {error.strerror or error}") from None
    files = len(package.manifest.files)
    print(
        f"{package.ref} is sealed: package.toml now lists its {files} {'file' if files == 1 else 'files'} "
        f"({size(sum(package.sizes.values()))}) with their SHA-256, digest {package.digest[:12]}."
    )
    print(f"Nothing may be changed in it from now on. Install it: edged models add {directory}")
    return EXIT_OK
