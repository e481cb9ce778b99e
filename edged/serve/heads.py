"""The heads of a service that splits: loaded beside its model, timed, and run in the threads of the models."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edged.collab.plan.heads import Cut, Encoded, HeadError, HeadsInfo, Whole
from edged.hardware.settings import Setting
from edged.serve.engine import Engine, EngineStopped, NotRun, Priority
from edged.serve.settings import LOAD_S
from edgekit.messages import Verdict
from edgekit.packages import HeadCut, HeadSpec, Package, PackageError, Variant, open_package, split_ref
from edgekit.planning.recent import quantile
from edgekit.runtimes import ModelError, Session, SessionOptions, open_session
from edgekit.services import Service
from edgekit.splitting.features import FeatureError, encode
from edgekit.vision.classification import read_answer
from edgekit.vision.images import ImageError, decode, encode_jpeg
from edgekit.vision.model import declared_input, files_beside, picture_shape
from edgekit.vision.preprocess import check_input, prepare, reduced_size

_RUNS = 5
"""Timed runs of each cut when it is loaded, after one that does not count."""
_SLOW = 0.95

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One cut."""

    cut: HeadCut
    session: Session


class LoadedHeads:
    """A head package in memory. Methods may be called from several threads."""

    def __init__(self, package: Package, spec: HeadSpec, options: SessionOptions) -> None:
        """Open and time every cut. Raises ModelError for a file that cannot be loaded or run, or is no such head."""
        self._package, self._spec = package, spec
        self._input = package.manifest.input
        told = replace(options, declared=declared_input(self._input))
        self._cuts = {cut.name: self._open(cut, told) for cut in spec.cuts}
        self.info = self._time()

    def encode(self, cut: str, picture: bytes) -> Encoded:
        """The features of a JPEG or PNG at a cut. Raises ImageError, ModelError or FeatureError."""
        loaded = self._cuts[cut]
        started = time.perf_counter()
        tensor = self._tensor(loaded, picture)
        prepared = time.perf_counter()
        payload = self._features(loaded, tensor)
        ended = time.perf_counter()
        return Encoded(payload=payload, prepare_ms=(prepared - started) * 1e3, head_ms=(ended - prepared) * 1e3)

    def answer(self, picture: bytes) -> Whole:
        """What the whole model says about a JPEG or PNG. Raises ImageError or ModelError."""
        loaded = self._cuts[self.info.whole]
        started = time.perf_counter()
        tensor = self._tensor(loaded, picture)
        prepared = time.perf_counter()
        verdict = self._verdict(loaded, tensor)
        ended = time.perf_counter()
        return Whole(verdict=verdict, prepare_ms=(prepared - started) * 1e3, head_ms=(ended - prepared) * 1e3)

    def close(self) -> None:
        """Give the memory back."""
        for loaded in self._cuts.values():
            loaded.session.close()

    # --- one run -----------------------------------------------------------------------------------------------------

    def _tensor(self, loaded: _Loaded, picture: bytes) -> NDArray[Any]:
        image = decode(picture, self._input.colour, reduce_to=reduced_size(self._input))
        return prepare(image, self._input, loaded.session.inputs[0])

    def _features(self, loaded: _Loaded, tensor: NDArray[Any]) -> bytes:
        outputs = loaded.session.run({loaded.session.inputs[0].name: tensor})
        return encode(dict(zip(loaded.cut.tensors, outputs, strict=True)))

    def _verdict(self, loaded: _Loaded, tensor: NDArray[Any]) -> Verdict:
        session, wanted = loaded.session, self._package.manifest.output
        outputs = session.run({session.inputs[0].name: tensor})
        names = [output.name for output in session.outputs]
        at = names.index(wanted.name) if wanted.name else 0
        answer = read_answer(outputs[at], session.outputs[at], wanted.kind, self._package.labels)
        return Verdict(label=answer.label, score=answer.score, margin=answer.margin, model=self._spec.of)

    # --- loading -----------------------------------------------------------------------------------------------------

    def _open(self, cut: HeadCut, options: SessionOptions) -> _Loaded:
        files = files_beside(self._package, Variant(file=cut.file))
        session = open_session(self._package.path(cut.file), "onnxruntime", options, files)
        if len(session.inputs) != 1:
            raise ModelError(f"{cut.file} has {len(session.inputs)} inputs; a head takes one picture")
        check_input(self._input, session.inputs[0])
        names = [output.name for output in session.outputs]
        if cut.whole:
            wanted = self._package.manifest.output
            if wanted.kind == "none" or (wanted.name and wanted.name not in names):
                raise ModelError(f"{cut.file} has no output that tells the label")
        elif names != cut.tensors:
            raise ModelError(f"{cut.file} gives {', '.join(names)[:200]}, but the package promises other features")
        return _Loaded(cut, session)

    def _time(self) -> HeadsInfo:
        """What everything takes here. The picture is the package's first sample, or a grey one."""
        picture = self._picture()
        first = next(iter(self._cuts.values()))
        preparing = [_took(lambda: self._tensor(first, picture)) for _ in range(_RUNS + 1)]
        cuts: list[Cut] = []
        for loaded in self._cuts.values():
            tensor = self._tensor(loaded, picture)
            run: Callable[..., object] = self._verdict if loaded.cut.whole else self._features
            took = [_took(partial(run, loaded, tensor)) for _ in range(_RUNS + 1)]
            size = 0 if loaded.cut.whole else len(self._features(loaded, tensor))
            cuts.append(
                Cut(
                    name=loaded.cut.name,
                    whole=loaded.cut.whole,
                    head_ms=quantile(took[1:], _SLOW),
                    # The features of one picture say less than the package, unless they are more.
                    wire_bytes=max(loaded.cut.wire_bytes, size),
                    tail_ms=loaded.cut.tail_ms,
                )
            )
        return HeadsInfo(
            of=self._spec.of,
            tail=self._spec.tail,
            whole_ms=self._spec.whole_ms,
            prepare_ms=quantile(preparing[1:], _SLOW),
            cuts=cuts,
        )

    def _picture(self) -> bytes:
        samples = self._package.manifest.samples
        if samples:
            return self._package.path(samples[0].file).read_bytes()
        return encode_jpeg(np.full(picture_shape(self._input), 128, np.uint8))


def load_heads(service: Service, directory: str | None, setting: Setting | None) -> LoadedHeads | str:
    """The heads of `[split]`, or one sentence about why there are none. Blocking.

    They run as the service's model does where that is onnxruntime's work too, else in the safe way, on the CPU.
    """
    split = service.split
    assert split is not None, "the service splits"
    if directory is None:
        return f"the head package {split.heads} is not installed"
    try:
        package = open_package(Path(directory), verify=True)
    except (PackageError, OSError) as error:
        return f"the head package in {directory} cannot be used: {error}"
    spec = package.manifest.head
    if spec is None:
        return f"{package.ref} is a model for {package.manifest.task} and no head package"
    name, version = split_ref(service.hard_samples.answer_model)
    of, of_version = split_ref(spec.of)
    if of != name or (version is not None and of_version != version):
        return f"{package.ref} belongs to {spec.of}, but {service.hard_samples.answer_model} answers"
    safe = SessionOptions()
    options = setting.options() if setting is not None and setting.runtime == "onnxruntime" else safe
    why = ""
    for one in (options, safe):
        loaded = _in_time(lambda one=one: LoadedHeads(package, spec, one))  # type: ignore[misc]
        if isinstance(loaded, LoadedHeads):
            return loaded
        why = f"the head package {package.ref} cannot be used: {loaded}"
    return why


def _in_time(load: Callable[[], LoadedHeads]) -> LoadedHeads | str:
    """Loaded, or why not. A vendor's library may hang for ever: its thread is lost then, the service is not."""
    outcome: list[LoadedHeads | str] = []

    def work() -> None:
        try:
            outcome.append(load())
        except Exception as error:  # also a provider's own: the service goes on without a split
            outcome.append(str(error) or type(error).__name__)

    thread = threading.Thread(target=work, name="loading-heads", daemon=True)
    thread.start()
    thread.join(LOAD_S)
    return outcome[0] if outcome else f"it was not loaded within {LOAD_S:.0f} s"


class EngineHeads:
    """Heads in the engine's threads, in a lane of their own beside the service's. See edged.collab.plan.heads.Heads."""

    def __init__(self, loaded: LoadedHeads, engine: Engine, service: Service) -> None:
        self._loaded, self._engine = loaded, engine
        self._lane = f"{service.name}/head"
        self._priority: Priority = service.priority

    @property
    def info(self) -> HeadsInfo:
        return self._loaded.info

    async def encode(self, cut: str, picture: bytes, deadline: float, patient: bool = False) -> Encoded:
        return await self._run(partial(self._loaded.encode, cut, picture), deadline, patient)

    async def answer(self, picture: bytes, deadline: float) -> Whole:
        return await self._run(partial(self._loaded.answer, picture), deadline, False)

    async def _run(self, work: Callable[[], T], deadline: float, patient: bool) -> T:
        priority: Priority = "audit" if patient else self._priority
        try:
            outcome = await self._engine.submit(self._lane, priority, deadline, work, may_expire=not patient)
        except (NotRun, EngineStopped) as error:
            raise HeadError(f"the head could not run in time ({error})") from error
        except (ImageError, ModelError, FeatureError) as error:
            raise HeadError(f"the head failed: {error}") from error
        return outcome.value


def _took(work: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3
