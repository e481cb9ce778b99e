"""What the tasks `anomaly` and `embedding` mean for a definition, and the `[gallery]` table."""

from __future__ import annotations

from edgekit import toml
from edgekit.services.definition import Service


def check_identity(service: Service) -> None:
    """Raise TomlError for a table that the task cannot follow."""
    if service.gallery is not None and service.task != "embedding":
        raise toml.TomlError('"gallery" is set', 'it belongs to task = "embedding" only')
    if service.task not in ("anomaly", "embedding"):
        return
    wrong = f'it does not belong to task = "{service.task}"'
    if service.pipeline is not None:
        where = "[input] of the package says what is cut out"
        why = "its limit was measured with that" if service.task == "anomaly" else "its gallery was enrolled with that"
        raise toml.TomlError('"pipeline" is set', f"{wrong}: {where}, and {why}")
    if service.regions is not None:
        raise toml.TomlError('"regions" is set', f"{wrong}: whole pictures are sent")
    if service.task == "embedding" and service.hard_samples.asks:
        raise toml.TomlError(
            f'"hard_samples.mode" is "{service.hard_samples.mode}"',
            'nobody but this device knows its gallery, so nobody can be asked; use "off", or leave the table out',
        )
