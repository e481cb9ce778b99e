"""Which directories a service definition may name that came from cloudd.

The daemon writes results and moves pictures wherever a definition says. The site's own people may say anything; cloudd
may name only what the site allows, so that whoever has taken it over cannot reach every file that the daemon can.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgekit import toml
from edgekit.services import Service, ServiceError


def check_paths(service: Service, allowed: Sequence[Path], origin: str) -> None:
    """Raise ServiceError unless outputs and watched folder lie below `allowed`. Follows links as they are now."""
    roots = [os.path.realpath(directory) for directory in allowed]
    named = [(f"outputs[{number}].path", output.path) for number, output in enumerate(service.outputs)]
    if service.source.kind == "folder":
        named.append(("source.path", service.source.path))
    for key, path in named:
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in roots):
            below = f"paths below {', '.join(map(str, allowed))}" if allowed else "no path at all"
            raise ServiceError(
                f'"{key}" is {toml.show(path)} in service {toml.show(service.name)} ({origin}): what cloudd defines '
                f"may name {below} on this device; its edged.toml can allow more ([cloud] allow_paths)"
            )
