"""The whole step: make variants of a package's float model, let the gate judge them, seal a new version with the rest.

A variant is accepted here for what it answers. How fast it is depends on the device: edged times every variant of a
package on its own silicon and takes the best, so this host's run times are shown, and judged only on request. What is
refused is not in the new package, but its record is.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cloudd.compress import lineage as record
from cloudd.compress.dataset import Split, lessons, split
from cloudd.compress.errors import CompressError
from cloudd.compress.lineage import FOLDER, LINEAGE, Lineage, Made
from cloudd.compress.trial import Speed, Trial
from cloudd.compress.variants import KINDS
from cloudd.derived import Progress, float_variant, source_of, tools
from edgekit import packages
from edgekit.datasets.dataset import Dataset, DatasetError
from edgekit.gates.limits import LIMITS
from edgekit.packages import Package, PackageError, Variant
from edgekit.packages.records import record_bytes

CALIBRATION = 200
"""Pictures that calibrate; ranges hardly move after the first hundred."""
HELD_OUT = 5_000
"""Pictures that judge: an 8-bit copy that loses and gains half a percent of them has a bound of about 0.2 points."""
TEACHING_SECONDS = 300.0
"""What teaching one narrower network may take; there are two of them at most."""
_FEWEST_CALIBRATION = 16
_SUFFIX = re.compile(r"(.*)-c(\d{1,6})")


@dataclass(frozen=True)
class Request:
    """What to compress, with which pictures, and in which folder the new package is to lie as NAME@VERSION."""

    package: Package
    dataset: Dataset
    out: Path
    version: str
    kinds: tuple[str, ...] = tuple(KINDS)
    faster_here: bool = False  # refuse as well what is not faster on this host
    held_out: int = HELD_OUT
    lessons: Dataset | None = None  # more to learn from than the side of the calibration; what judges is left out of it
    seconds: float = TEACHING_SECONDS  # of computing for each network that is taught


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `speeds`: by kind, "" for the float model."""

    model: str  # name@version of the new package
    package: str  # its directory, "" if nothing was accepted
    source_bytes: int
    speeds: dict[str, Speed]
    lineage: Lineage

    @property
    def accepted(self) -> list[Made]:
        """The variants that are in the package."""
        return [made for made in self.lineage.variants if made.accepted]


def next_version(version: str) -> str:
    """1 -> 1-c1 -> 1-c2: newer than what it was made from, older than the author's next one."""
    match = _SUFFIX.fullmatch(version)
    return f"{match[1]}-c{int(match[2]) + 1}" if match else f"{version}-c1"


def compress(request: Request, progress: Progress = lambda step, done, total: None) -> Outcome:
    """Carry it out. The same request gives the same package, unless `faster_here` or too few `seconds` for all that a
    narrower network would be shown let the clock have a say.

    Nothing is left behind but the finished package; without an accepted variant there is none. Raises CompressError,
    DatasetError, PackageError (another package of this name and version is there), ModelError if the float model itself
    does not run, or OSError.
    """
    package = request.package
    packages.check_version(request.version)
    source = _float_variant(package)
    sides = _sides(request)
    with tempfile.TemporaryDirectory(prefix="cloudd-compress-") as folder:
        kinds = [KINDS[name] for name in dict.fromkeys(request.kinds)]
        learnt = lessons(request.dataset, sides, request.lessons) if any(kind.taught for kind in kinds) else None
        trial = Trial(
            package,
            source,
            request.dataset,
            sides,
            learnt,
            request.seconds,
            Path(folder),
            request.faster_here,
            progress,
        )
        trial.run(kinds)
        lineage = Lineage(
            source=source_of(package, source),
            data=record.data_record(request.dataset, sides, learnt),
            tools=tools(),
            variants=[trial.made[kind.name] for kind in kinds],
        )
        accepted = any(made.accepted for made in lineage.variants)
        sealed = str(_seal(request, lineage, trial.files)) if accepted else ""
    return Outcome(
        model=f"{package.manifest.name}@{request.version}",
        package=sealed,
        source_bytes=trial.source_bytes,
        speeds=trial.speeds,
        lineage=lineage,
    )


def _float_variant(package: Package) -> Variant:
    """The variant to start from. Raises CompressError for a package that cannot be compressed."""
    manifest = package.manifest
    if manifest.task != "classification":
        raise CompressError(
            f'{package.ref} is for the task "{manifest.task}"; only the answers of classification can be compared '
            "picture by picture, so only that is compressed"
        )
    if LINEAGE not in manifest.files and any(_ours(file) for file in manifest.files):
        raise CompressError(f"{package.ref} has a folder {FOLDER}/ of its own, which compression needs for itself")
    variant = float_variant(one for one in manifest.variants if not _ours(one.file))
    if variant is None:
        raise CompressError(f"{package.ref} has no fp32 variant for onnxruntime to make others from")
    return variant


def _ours(file: str) -> bool:
    """Whether compression made this file of a package."""
    return file.startswith(f"{FOLDER}/")


def _sides(request: Request) -> Split:
    sides = split(request.dataset.pictures, CALIBRATION, max(LIMITS.items, request.held_out))
    if len(sides.held_out) < LIMITS.items or len(sides.calibration) < _FEWEST_CALIBRATION:
        raise DatasetError(
            f"of the {len(request.dataset.pictures)} pictures {len(sides.held_out)} could judge and "
            f"{len(sides.calibration)} calibrate; {LIMITS.items} and {_FEWEST_CALIBRATION} are needed, "
            f"which takes about {LIMITS.items * 13 // 10} pictures"
        )
    return sides


def _seal(request: Request, lineage: Lineage, files: dict[str, Path]) -> Path:
    """Put the new package together beside its place, and move it there when it is whole."""
    package = request.package
    request.out.mkdir(parents=True, exist_ok=True)
    kept = [path for path in package.manifest.files if not _ours(path)]
    with tempfile.TemporaryDirectory(prefix=".compressing-", dir=request.out) as name:
        staged = Path(name) / "package"
        for path in kept:
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package.path(path), staged / path)
        (staged / FOLDER).mkdir()
        front: list[Variant] = []
        back: list[Variant] = []
        for made in lineage.variants:
            if made.accepted:
                shutil.copyfile(files[made.kind], staged / made.file)
                side = front if KINDS[made.kind].leads else back
                network = made.recipe.network if made.recipe else ""
                side.append(Variant(file=made.file, precision=made.precision, network=network or None))
        (staged / LINEAGE).write_bytes(record_bytes(lineage))
        own = [variant for variant in package.manifest.variants if not _ours(variant.file)]
        manifest = msgspec.structs.replace(package.manifest, version=request.version, variants=front + own + back)
        sealed = packages.seal_package(staged, manifest)
        for path in kept:
            if sealed.manifest.files[path] != package.manifest.files[path]:
                raise PackageError(f'"{path}" of {package.ref} changed while it was copied')
        return packages.adopt(staged, request.out).root
