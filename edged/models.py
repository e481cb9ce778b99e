"""The models installed on this device: what is there, what came, what may go."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec

from edged.status.state import ModelState
from edgekit import atomic, packages
from edgekit.packages import PackageError, open_package


class ModelStore:
    """The packages below one directory. `refresh`, `add` and `remove` block; the rest answers from memory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._packages: dict[str, Path] = {}
        self._states: dict[str, ModelState] = {}
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)

    def open(self) -> None:
        """Remove what interrupted installs left, then look around."""
        packages.sweep(self.directory)
        self.refresh()

    def refresh(self) -> None:
        """Look at the directory again. Hashes nothing: a worker verifies a package when it loads it."""
        found = packages.installed(self.directory)
        states: dict[str, ModelState] = {}
        for ref, path in found.items():
            try:
                package = open_package(path, verify=False)
            except PackageError as error:
                name, _, version = ref.partition("@")
                states[ref] = ModelState(name=name, version=version, digest="", description=f"damaged: {error}")
                continue
            manifest = package.manifest
            states[ref] = ModelState(
                name=manifest.name,
                version=manifest.version,
                digest=package.digest,
                task=manifest.task,
                description=manifest.description,
                variants=[f"{variant.runtime}/{variant.precision}" for variant in manifest.variants],
                size=sum(package.sizes.values()),
            )
        self._packages, self._states = found, states

    def installed(self) -> dict[str, Path]:
        """name@version -> directory, without damaged packages."""
        return {ref: path for ref, path in self._packages.items() if self._states[ref].digest}

    def refs(self) -> list[str]:
        """name@version of every package, damaged ones too."""
        return list(self._packages)

    def states(self, used_by: Mapping[str, list[str]], served: Collection[str] = ()) -> list[ModelState]:
        """What the page shows; `used_by` maps name@version to the services that run it, `served` run without one."""
        return [
            msgspec.structs.replace(state, used_by=used_by.get(ref, []), served=ref in served)
            for ref, state in self._states.items()
        ]

    def add(self, source: Path) -> str:
        """Install the package in `source`; its name@version. Raises PackageError or OSError."""
        package = packages.install(source, self.directory)
        self.refresh()
        return package.ref

    def remove(self, ref: str) -> None:
        """Remove name@version. The caller has checked that no service runs it. Raises PackageError or OSError."""
        if ref not in self._packages:
            known = ", ".join(self._packages) or "none"
            raise PackageError(f"the model {ref} is not installed (installed: {known})")
        path = self._packages[ref]
        hidden = path.with_name(f".incoming-removed-{path.name}")  # `sweep` finishes an interrupted removal
        path.rename(hidden)
        atomic.fsync_dir(self.directory)
        shutil.rmtree(hidden, ignore_errors=True)
        self.refresh()
