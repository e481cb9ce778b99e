"""A package becomes a service in one step: it is installed, and a definition with defaults for its task is added."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from urllib.parse import quote

from edged.api import ApiError, ModelBody, Progress, ServiceText
from edged.cli.output import Failure, ProgressBar, client
from edged.status.state import ServiceState
from edgekit.packages import Package, PackageError, open_package

WAIT_S = 180.0


def definition(package: Package, name: str = "") -> str:
    """The service definition that suits a package; `name` of the service, "" for the model's.

    Raises Failure for a package that no service can run by itself.
    """
    manifest = package.manifest
    lines = [
        f"name = {_text(name or manifest.name)}",
        f"task = {_text(manifest.task)}",
        f"model = {_text(package.ref)}",
    ]
    if manifest.task == "anomaly":
        good, other = package.labels
        lines += ["", "[decision]", f"pass = [{_text(good)}]", f"fail = [{_text(other)}]"]
    elif manifest.task == "embedding":
        lines += ['may_leave = "nothing"', "", "[decision]", 'pass = ["known"]', 'fail = ["unknown"]']
    elif manifest.task not in ("classification", "detection"):
        raise Failure(f'{package.ref} has the task "{manifest.task}"; no service runs that by itself')
    return "\n".join(lines) + "\n"


def opened(directory: Path) -> Package:
    """The package in a directory. Raises Failure."""
    try:
        return open_package(directory.absolute())
    except (PackageError, OSError) as error:
        raise Failure(f"{directory} holds no package that could be served: {error}") from None


def install(options: argparse.Namespace, package: Package) -> None:
    """Install it on the device, unless it is there already. Raises ApiError, Failure."""
    bring(options, package.ref, ModelBody(path=str(package.root)))


def bring(options: argparse.Namespace, title: str, body: ModelBody) -> str:
    """Have the daemon install or fetch a model; its name@version. Raises ApiError, Failure."""
    bar, last = ProgressBar(title), Progress()
    try:
        for last in client(options).stream("/models", Progress, body):
            bar.show(last.done, last.total)
    finally:
        bar.clear()
    if last.error or not last.ref:
        raise Failure(last.error or "edged ended before the model was installed; look at its log")
    return last.ref


def has_service(options: argparse.Namespace, name: str) -> bool:
    """Whether the device has a service of this name. Raises ApiError."""
    try:
        client(options).get(f"/services/{quote(name, safe='')}", ServiceText)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True


def serve(options: argparse.Namespace, text: str) -> ServiceState:
    """Add the service and wait until it is ready. Raises ApiError, and Failure if it does not become ready."""
    state = client(options).post(f"/services?wait_s={WAIT_S:g}", ServiceState, text, timeout_s=WAIT_S + 30.0)
    if state.refused or state.report.state != "ready":
        raise Failure(f"the service {state.name} does not run: {state.refused or state.report.detail or 'it loads'}")
    return state


def _text(value: str) -> str:
    """A TOML string: what JSON writes is one."""
    return json.dumps(value, ensure_ascii=False)
