"""Which directories and receivers a service definition may name that came from cloudd.

The daemon writes results, moves pictures and opens cameras wherever a definition says. The site's own people may say
anything; cloudd may name only what the site allows, so that whoever has taken it over cannot reach every file that the
daemon can.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from edgekit import toml
from edgekit.outputs import NETWORK, destination, named_files
from edgekit.services import Service, ServiceError


def check_paths(service: Service, allowed: Sequence[Path], origin: str, hosts: Sequence[str] = ()) -> None:
    """Raise ServiceError unless every file that is named lies below `allowed`, following links as they are now, and
    every output and camera on the network is one of `hosts` ("host" or "host:port").
    """
    _check_hosts(service, hosts, origin)
    _check_camera(service, hosts, origin)
    roots = [os.path.realpath(directory) for directory in allowed]
    named = [
        (f"outputs[{number}].{key}", path)
        for number, output in enumerate(service.outputs)
        for key, path in named_files(output).items()  # of secrets too: they would be sent to where cloudd says
    ]
    if service.source.path:
        named.append(("source.path", service.source.path))
    if service.source.credentials:  # they would be sent to an address that cloudd chooses
        named.append(("source.credentials", service.source.credentials))
    for key, path in named:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in roots):
            below = f"paths below {', '.join(map(str, allowed))}" if allowed else "no path at all"
            raise ServiceError(
                f'"{key}" is {toml.show(path)} in service {toml.show(service.name)} ({origin}): what cloudd defines '
                f"may name {below} on this device; its edged.toml can allow more ([cloud] allow_paths)"
            )


def _check_hosts(service: Service, hosts: Sequence[str], origin: str) -> None:
    known = {host.lower() for host in hosts}
    for number, output in enumerate(service.outputs):
        if output.kind not in NETWORK:
            continue
        host, port = destination(output)
        plain = f"[{host}]" if ":" in host else host
        if not known & {host, plain, f"{plain}:{port}"}:
            raise ServiceError(
                f'"outputs[{number}].url" names {toml.show(f"{plain}:{port}")} in service {toml.show(service.name)} '
                f"({origin}): decisions may leave by a definition of cloudd's only for the receivers that the device's "
                "edged.toml allows ([cloud] allow_hosts)"
            )


def _check_camera(service: Service, hosts: Sequence[str], origin: str) -> None:
    """A definition must not make the device look around in its network, nor send a camera's password elsewhere."""
    if not service.source.url:
        return
    parts = urlsplit(service.source.url)
    host = (parts.hostname or "").lower()
    plain = f"[{host}]" if ":" in host else host
    port = parts.port or {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}[parts.scheme]
    if not {one.lower() for one in hosts} & {host, plain, f"{plain}:{port}"}:
        raise ServiceError(
            f'"source.url" names {toml.show(f"{plain}:{port}")} in service {toml.show(service.name)} ({origin}): a '
            "definition of cloudd's may read only the cameras that the device's edged.toml allows ([cloud] allow_hosts)"
        )
