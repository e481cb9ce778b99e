"""The whole step: find the cuts of a package's float model, prove the few that are worth it, seal head and tail.

The head package goes to devices, the tail package stays with cloudd. Nothing is decided here about when a service
splits: that is the planner's business at the edge, from what it measures.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cloudd.derived import Progress, files_of, float_variant, source_of, tools
from cloudd.split import proof
from cloudd.split.choice import choose
from cloudd.split.lineage import FOLDER, LINEAGE, Lineage, RefusedCut
from cloudd.split.proof import Proved, Whole
from edgekit import packages
from edgekit.packages import HeadCut, HeadSpec, Manifest, Package, PackageError, TailCut, TailSpec, Variant, heads
from edgekit.packages.records import record_bytes
from edgekit.runtimes import ModelError
from edgekit.splitting.cuts import Cut, CutTable, find_cuts
from edgekit.splitting.graph import Graph, read_graph
from edgekit.splitting.halves import SplitError
from edgekit.vision.classification import Classifier

CUTS = 4
"""Of a pair of packages, unless more or fewer are asked for."""
MAX_CUTS = heads.MAX_CUTS - 1  # the whole model may be one more
LEAST_WORK = 0.1
"""Share of the model's work that every head does. The features of an earlier cut are hardly less than the picture."""
_MOST_REFUSED = 12
"""A model that fails so many proofs fails them for a reason of its own."""


@dataclass(frozen=True)
class Request:
    """What to split, and in which folder the packages are to lie as NAME-head@VERSION and NAME-tail@VERSION."""

    package: Package
    out: Path
    version: str
    cuts: int = CUTS  # at most
    whole: bool = False  # the head package has the whole model as well
    least_work: float = LEAST_WORK

    @property
    def head(self) -> str:
        """name@version of the head package."""
        return f"{self.package.manifest.name}-head@{self.version}"

    @property
    def tail(self) -> str:
        """name@version of the tail package."""
        return f"{self.package.manifest.name}-tail@{self.version}"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. Times are milliseconds of one thread on this host."""

    head: str  # name@version
    tail: str
    head_package: str  # directories
    tail_package: str
    whole_ms: float
    tail_ms: dict[str, float]  # by the name of the cut
    lineage: Lineage


def split(
    request: Request,
    progress: Progress = lambda step, done, total: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Carry it out. The same model gives the same tail package, and the same head package but for measured times.

    Nothing is left behind but two finished packages, or none. Raises SplitError if the model cannot be cut, or no cut
    passes its proof; ModelError if the model itself does not run; PackageError (other packages of these names and
    versions are there); or OSError.
    """
    variant = _float_variant(request)
    with tempfile.TemporaryDirectory(prefix="cloudd-split-") as name:
        progress("reading", 0, 0)
        with closing(Classifier.load(request.package, variant=variant)) as model:
            whole = Whole.open(model)
            graph = read_graph(request.package.path(variant.file), whole.shapes())
            table = find_cuts(graph)
            search = _Search(request, whole, graph, Path(name), progress, clock)
            proved = search.run(table)
            progress("timing", 0, 0)
            whole_ms = whole.time_ms(clock)
        lineage = Lineage(
            source=source_of(request.package, variant),
            tools=tools(),
            samples=len(request.package.manifest.samples),
            pictures=len(whole.feeds),
            least_work=request.least_work,
            places=len(table.cuts),
            cuts=[one.record for one in proved],
            refused=search.refused,
        )
        head, tail = _seal(request, variant, lineage, proved, whole_ms)
    return Outcome(
        head=request.head,
        tail=request.tail,
        head_package=str(head),
        tail_package=str(tail),
        whole_ms=whole_ms,
        tail_ms={one.record.name: one.tail_ms for one in proved},
        lineage=lineage,
    )


def _float_variant(request: Request) -> Variant:
    """The variant to cut. Raises SplitError or PackageError for a request that must fail, before anything is done."""
    package, manifest = request.package, request.package.manifest
    for ref in (request.head, request.tail):
        packages.split_ref(ref)
        if (request.out / ref).exists():
            raise PackageError(f"{request.out / ref} is there already; give the new packages another version")
    if not 1 <= request.cuts <= MAX_CUTS or not 0.0 <= request.least_work < 1.0:
        raise SplitError(f"1 to {MAX_CUTS} cuts can be made, and the least share of work lies between 0 and 1")
    if manifest.task != "classification":
        raise SplitError(
            f'{package.ref} is for the task "{manifest.task}"; only classification is split, because boxes could '
            "not be placed on a picture that never comes"
        )
    if any(file.startswith(f"{FOLDER}/") for file in manifest.files):
        raise SplitError(f"{package.ref} has a folder {FOLDER}/ of its own, which splitting needs for itself")
    variant = float_variant(manifest.variants)
    if variant is None:
        raise SplitError(f"{package.ref} has no fp32 variant for onnxruntime to cut")
    return variant


@dataclass
class _Search:
    request: Request
    whole: Whole
    graph: Graph
    folder: Path
    progress: Progress
    clock: Callable[[], float]
    refused: list[RefusedCut] = field(default_factory=list)

    def run(self, table: CutTable) -> list[Proved]:
        """The cuts that were chosen and proved, at least one; where one is refused, another takes its place."""
        left = [cut for cut in table.cuts if cut.work >= self.request.least_work]
        if not left:
            raise SplitError(self._why_none(table))
        (picture,) = (array.size for array in self.whole.feeds[0].values())
        proved: dict[int, Proved] = {}
        while True:
            chosen = choose(left, self.request.cuts, self.request.whole, picture)
            waiting = [cut for cut in chosen if cut.index not in proved]
            if not waiting or len(self.refused) >= _MOST_REFUSED:
                break
            for cut in waiting:
                self.progress(f"proving c{cut.index}", sum(one.index in proved for one in chosen), len(chosen))
                if not self._prove(cut, proved):
                    left.remove(cut)
        kept = [proved[cut.index] for cut in chosen if cut.index in proved]
        if not kept:
            first = self.refused[0]
            raise SplitError(
                f"no cut of {self.request.package.ref} passed its proof ({len(self.refused)} were tried); "
                f"the first, {first.name}: {first.reason}"
            )
        return kept

    def _prove(self, cut: Cut, proved: dict[int, Proved]) -> bool:
        try:
            proved[cut.index] = proof.prove(self.whole, self.graph, cut, self.folder, self.clock)
        except ModelError as error:
            self.refused.append(RefusedCut(name=f"c{cut.index}", reason=str(error)))
        return cut.index in proved

    def _why_none(self, table: CutTable) -> str:
        ref, least = self.request.package.ref, self.request.least_work
        if table.cuts:
            most = max(cut.work for cut in table.cuts)
            return f"{ref} has no cut with {least:.1%} of its work before it; the latest has {most:.1%}"
        reasons = Counter[str]()
        for one in table.refused:
            reasons[one.reason] += one.places
        return f"{ref} cannot be cut: {reasons.most_common(1)[0][0] if reasons else 'it has only one operator'}"


def _seal(
    request: Request, variant: Variant, lineage: Lineage, proved: list[Proved], whole_ms: float
) -> tuple[Path, Path]:
    """Put both packages together beside their place, and move them there when both are whole: (head, tail)."""
    package = request.package
    head, tail = _head(request, variant, proved, whole_ms), _tail(request, proved)
    kept = {package.manifest.labels, *(one.file for one in head.samples)}
    if request.whole:
        kept.update(files_of(package, variant))
    record = record_bytes(lineage)
    request.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".splitting-", dir=request.out) as name:
        heads_made = {one.record.file: one.head for one in proved}
        tails_made = {one.record.file: one.tail for one in proved}
        staged_head = _stage(Path(name) / "head", head, package, kept, heads_made, record)
        staged_tail = _stage(Path(name) / "tail", tail, package, {tail.labels}, tails_made, record)
        tail_root = packages.adopt(staged_tail, request.out).root
        return packages.adopt(staged_head, request.out).root, tail_root


def _head(request: Request, variant: Variant, proved: list[Proved], whole_ms: float) -> Manifest:
    package = request.package
    cuts = [
        HeadCut(
            name=one.record.name,
            file=one.record.file,
            tensors=one.record.tensors,
            work=round(one.record.work, 4),
            wire_bytes=one.record.wire_bytes,
            tail_ms=round(one.tail_ms, 4),
        )
        for one in proved
    ]
    if request.whole:
        cuts.append(HeadCut(name="whole", file=variant.file, whole=True))
    spec = HeadSpec(of=package.ref, digest=package.digest, tail=request.tail, whole_ms=round(whole_ms, 4), cuts=cuts)
    half = _half(request, request.head, "head")
    return msgspec.structs.replace(half, head=spec, samples=package.manifest.samples)


def _tail(request: Request, proved: list[Proved]) -> Manifest:
    package = request.package
    cuts = [TailCut(name=one.record.name, file=one.record.file) for one in proved]
    spec = TailSpec(of=package.ref, digest=package.digest, cuts=cuts)
    return msgspec.structs.replace(_half(request, request.tail, "tail"), tail=spec)


def _half(request: Request, ref: str, task: str) -> Manifest:
    manifest = request.package.manifest
    return Manifest(
        name=ref.partition("@")[0],
        version=request.version,
        task=task,
        description=f"{task} of {request.package.ref}",
        labels=manifest.labels,
        input=manifest.input,
        output=manifest.output,
    )


def _stage(
    root: Path, manifest: Manifest, package: Package, kept: Iterable[str], made: Mapping[str, Path], record: bytes
) -> Path:
    """Fill and seal `root`: files of the package, files that were made, and the record. Returns it."""
    copied = {path: package.path(path) for path in kept}
    for path, source in {**copied, **made}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, root / path)
    (root / LINEAGE).write_bytes(record)
    sealed = packages.seal_package(root, manifest)
    for path in copied:
        if sealed.manifest.files[path] != package.manifest.files[path]:
            raise PackageError(f'"{path}" of {package.ref} changed while it was copied')
    return root
