"""Packages for the scripted runtime: what a vendor's library would do, as a file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, ProofSample, Variant, seal_package
from edgekit.runtimes.fake_driver import Script
from support.models import picture

LABELS = ["dark", "bright"]


def script(**values: object) -> Script:
    """A runtime that tells dark pictures from bright ones, as support.models does: right unless told otherwise."""
    answers: dict[str, object] = {"gain": (30.0, 90.0), "offset": (-3.75, -33.75)}
    return msgspec.convert({**answers, **values}, Script)


def scripted_package(
    directory: Path, files: dict[str, Script], *, samples: bool = True, name: str = "scripted"
) -> Package:
    """A package whose variants are scripts; the tests' settings open them with the runtime "fake"."""
    directory.mkdir(parents=True)
    for file, one in files.items():
        (directory / file).write_bytes(msgspec.json.encode(one))
    (directory / "labels.txt").write_text("dark\nbright\n")
    proofs = []
    if samples:
        for index, brightness in enumerate((0.25, 0.75)):
            (directory / f"{index}.png").write_bytes(picture(brightness))
            proofs.append(ProofSample(file=f"{index}.png", label=LABELS[index]))
    manifest = Manifest(
        name=name,
        version="1",
        labels="labels.txt",
        input=InputSpec(width=16, height=16, colour="rgb", scale=[1 / 255]),
        output=OutputSpec(kind="logits"),
        variants=[Variant(file=file) for file in files],
        samples=proofs,
    )
    return seal_package(directory, manifest)
