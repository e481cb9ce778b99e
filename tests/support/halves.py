"""The example's large solder model cut in two, with heads that run in this process."""

from __future__ import annotations

from pathlib import Path

from cloudd.split import Request, split
from edgekit.messages import HardSample
from edgekit.packages import HeadSpec, Package, TailSpec, open_package
from edgekit.runtimes import open_session
from edgekit.splitting.features import decode
from edgekit.vision.classification import Classified, read_answer

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"


class Halves:
    """Both packages and the whole they were cut from."""

    def __init__(self, folder: Path, *, whole: bool = True) -> None:
        self.whole = open_package(MODELS / "solder-large")
        made = split(Request(package=self.whole, out=folder, version="1", cuts=2, whole=whole))
        self.head, self.tail = open_package(Path(made.head_package)), open_package(Path(made.tail_package))

    @property
    def spec(self) -> HeadSpec:
        assert self.head.manifest.head is not None
        return self.head.manifest.head

    @property
    def cuts(self) -> list[str]:
        """Names of the cuts at which features leave."""
        return [cut.name for cut in self.spec.cuts if not cut.whole]

    def end(self, header: HardSample, payload: bytes) -> Classified:
        """What cloudd makes of features."""
        spec = self.tail.manifest.tail
        assert isinstance(spec, TailSpec) and header.features is not None and header.features.tail == self.tail.ref
        cut = spec.cut(header.features.cut)
        assert cut is not None
        session = open_session(self.tail.path(cut.file), "onnxruntime")
        outputs = session.run(decode(payload, session.inputs))
        return read_answer(outputs[0], session.outputs[0], self.tail.manifest.output.kind, self.tail.labels)


def samples(package: Package) -> dict[str, bytes]:
    """The package's own pictures by their label."""
    return {sample.label: package.path(sample.file).read_bytes() for sample in package.manifest.samples}
