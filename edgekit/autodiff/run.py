"""Executes a derived train step with numpy and onnxruntime; nothing else is needed on a device.

    runner = StepRunner(Path("step"), threads=2)
    for images, labels in batches:
        fetched = runner.step({"x": images, "labels": labels, "learning_rate": 0.01})
    runner.write_model(Path("trained"))

A step reads one set of state tensors and writes another, which then change places: no state is copied. What only the
optimiser reads is written over where its graph allows it, which saves a copy of the weights in memory for SGD and two
for AdamW.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.manifest import (
    APPLY,
    MODEL,
    MODEL_DATA,
    STEP,
    StateSpec,
    StepManifest,
    read_manifest,
    read_states,
)
from edgekit.runtimes import ModelError
from edgekit.runtimes.base import check_model_file

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

_MODE = 0o644
_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


class StepRunner:
    """A train step with its states."""

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        spin: bool = True,
        states: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Open the artefact in `folder`.

        threads: of one step, 1 or more.
        spin: False lets idle threads sleep at once, which costs 5 to 18 % of time and saves 4 to 17 % of work: right
            beside running inspection (`research/edge-training.md`).
        states: to go on from, as `states` gave them.
        Raises AutodiffError: no artefact, files that do not fit, onnxruntime not installed, states that do not fit.
        """
        self.folder = folder
        self.manifest: StepManifest = read_manifest(folder)
        self._specs: dict[str, StateSpec] = {one.name: one for one in self.manifest.states}
        self._session = _open(folder / STEP, threads, spin, self.manifest.frozen_prefix)
        self._apply = _open(folder / APPLY, threads, spin, False) if self.manifest.kind == "accumulate" else None
        first = read_states(folder, self.manifest)
        self._current = {name: _on_device(array) for name, array in first.items()}
        self._over = {one.name for one in self.manifest.states if one.in_place}
        self._next = {
            name: self._current[name] if name in self._over else _on_device(np.zeros_like(array))
            for name, array in first.items()
        }
        self._pending = 0.0
        if states is not None:
            self.load(states)

    # ---------------------------------------------------------------- steps

    def step(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """One batch: every input but the states, by name. Returns the loss, the metrics and outputs asked for.

        A step whose loss is not finite changes no parameter and no running statistics; the optimiser starts anew.
        Raises AutodiffError: inputs missing, unknown or of the wrong shape; a loss that is not finite; a step of
        another kind (see `accumulate`).
        """
        if self.manifest.kind not in ("update", "reestimate"):
            raise AutodiffError(
                f"this step is of the kind {self.manifest.kind}; it does not update the parameters by itself"
            )
        return self._run(self._session, feeds, self.manifest.fetched)

    def gradients(self, feeds: Mapping[str, Any]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """Of a step without an optimiser: what `step` returns, and the gradient of every parameter by its name."""
        if self.manifest.kind != "gradients":
            raise AutodiffError(f"this step is of the kind {self.manifest.kind}; it gives no gradients")
        names = [f"{name}.gradient" for name in self.manifest.gradients]
        found = self._run(self._session, feeds, (*self.manifest.fetched, *names))
        gradients = {name: found.pop(f"{name}.gradient") for name in self.manifest.gradients}
        return found, gradients

    def accumulate(self, feeds: Mapping[str, Any], share: float) -> dict[str, NDArray[Any]]:
        """Add the gradients of one micro-batch, which is the part `share` (0..1] of the whole batch."""
        if self._apply is None:
            raise AutodiffError("this step was not derived with accumulate=True")
        if not 0.0 < share <= 1.0:
            raise AutodiffError(f"a micro-batch is a part of the batch between 0 and 1, not {share}")
        found = self._run(self._session, {**feeds, "share": np.float32(share)}, self.manifest.fetched)
        self._pending += share
        return found

    def apply(self, feeds: Mapping[str, Any]) -> None:
        """Make new parameters of the accumulated gradients; `feeds` are the optimiser's inputs (the learning rate).

        Raises AutodiffError unless the shares of the micro-batches sum to 1.
        """
        if self._apply is None:
            raise AutodiffError("this step was not derived with accumulate=True")
        if not math.isclose(self._pending, 1.0, abs_tol=1e-3):
            raise AutodiffError(f"the micro-batches since the last update are {self._pending:.3f} of a batch, not 1")
        self._run(self._apply, feeds, ())
        self.discard()

    def discard(self) -> None:
        """Forget the accumulated gradients."""
        for one in self.manifest.of("accumulator"):
            self._current[one.name].update_inplace(np.zeros(one.shape, np.float32))
        self._pending = 0.0

    def _run(self, session: _Session, feeds: Mapping[str, Any], fetch: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        binding, updated = self._binding(session, fetch)
        given = dict(feeds)
        kept = []  # the binding holds addresses, not arrays
        for name, (dtype, shape) in session.inputs.items():
            if name in self._current:
                continue
            if name not in given:
                wanted = ", ".join(key for key in session.inputs if key not in self._current)
                raise AutodiffError(f"the step needs the input {name}; it takes {wanted}")
            array = np.ascontiguousarray(given.pop(name), dtype).reshape(np.shape(feeds[name]))
            if len(shape) != array.ndim or any(
                isinstance(size, int) and size != array.shape[axis] for axis, size in enumerate(shape)
            ):
                raise AutodiffError(f"input {name} has the shape {list(array.shape)}; the step takes {shape}")
            if array.ndim == 0 and not np.isfinite(array):
                raise AutodiffError(f"input {name} is not finite")
            kept.append(array)
            binding.bind_cpu_input(name, array)
        if given:
            raise AutodiffError(f"the step has no input {sorted(given)[0]}")
        for name in fetch:
            binding.bind_output(name)
        try:
            session.session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            self._restart(updated)
            raise AutodiffError(f"the step failed: {str(error)[:300]}") from error
        # Only what is fetched is copied; the states are as large as the model.
        results = binding.get_outputs()[len(updated) :]
        found = {name: np.array(value.numpy()) for name, value in zip(fetch, results, strict=True)}
        if "loss" in found and not np.isfinite(found["loss"]).all():
            self._restart(updated)
            raise AutodiffError(
                "the loss is not finite; no parameter was changed. Check the inputs and lower the learning rate"
            )
        for name in updated:
            self._current[name], self._next[name] = self._next[name], self._current[name]
        session.turns += 1
        return found

    def _binding(self, session: _Session, fetch: tuple[str, ...]) -> tuple[Any, list[str]]:
        """The binding of a session to the states as they lie now, and the states that it updates.

        A network has hundreds of states, which change places after every step: their bindings are made once for each
        of the two ways in which each session may have left them.
        """
        updated = [name for name in session.updates if name in self._next]
        key = (self._session.turns % 2, self._apply.turns % 2 if self._apply else 0, fetch)
        binding = session.bindings.get(key)
        if binding is None:
            binding = session.bindings[key] = session.session.io_binding()
            for name in session.inputs.keys() & self._current.keys():
                binding.bind_ortvalue_input(name, self._current[name])
            for name in updated:
                binding.bind_ortvalue_output(f"{name}.new", self._next[name])
        return binding, updated

    def _restart(self, updated: Collection[str]) -> None:
        """Give all states of the optimiser their first values where a step without a result has overwritten some."""
        if self._over.intersection(updated):
            first = read_states(self.folder, self.manifest)
            self.load({one.name: first[one.name] for one in self.manifest.of("optimiser")})

    # ---------------------------------------------------------------- states

    def states(self) -> dict[str, NDArray[np.float32]]:
        """Copies of all states, by name. Raises AutodiffError when one is not finite."""
        return {one.name: self._copy(one) for one in self.manifest.states}

    def parameters(self) -> dict[str, NDArray[np.float32]]:
        """Copies of what the model takes: parameters and running statistics, by name. Raises as `states`."""
        return {one.name: self._copy(one) for one in self.manifest.of("parameter", "batch_norm")}

    def _copy(self, spec: StateSpec) -> NDArray[np.float32]:
        array = np.array(self._current[spec.name].numpy(), np.float32)
        if not np.isfinite(array).all():
            raise AutodiffError(
                f"{spec.name} is not finite: gradients overflowed. Load earlier states and lower the learning rate"
            )
        return array

    def load(self, states: Mapping[str, NDArray[np.float32]]) -> None:
        """Set some or all states. Raises AutodiffError: unknown name, another shape, values that are not finite."""
        for name, array in states.items():
            spec = self._specs.get(name)
            if spec is None:
                raise AutodiffError(f"the step has no state {name}")
            if tuple(array.shape) != spec.shape:
                raise AutodiffError(f"state {name} has the shape {list(spec.shape)}, not {list(array.shape)}")
            if not np.isfinite(array).all():
                raise AutodiffError(f"state {name} has values that are not finite")
        for name, array in states.items():
            self._current[name].update_inplace(np.asarray(array, np.float32, order="C"))

    def write_model(self, folder: Path) -> Path:
        """Write the forward model with the present parameters into `folder`; returns the path of its ONNX file.

        Over an older model of the same step, a reader finds the old or the new weights, never a part. Raises
        AutodiffError when a parameter is not finite, OSError for a full disk.
        """
        trained = self.parameters()
        places = {
            one.model_offset: one for one in self.manifest.of("parameter", "batch_norm") if one.model_offset is not None
        }
        try:
            old, graph = memoryview((self.folder / MODEL_DATA).read_bytes()), (self.folder / MODEL).read_bytes()
        except OSError as error:
            raise AutodiffError(f"the forward model of {self.folder} cannot be read: {error.strerror}") from error
        parts: list[bytes | memoryview] = []
        done = 0
        for offset, one in sorted(places.items()):
            parts += [old[done:offset], trained[one.name].astype("<f4", copy=False).tobytes()]
            done = offset + one.bytes
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_file(folder / MODEL_DATA, b"".join([*parts, old[done:]]), _MODE)
        atomic.write_file(folder / MODEL, graph, _MODE)
        return folder / MODEL


class _Session:
    """An onnxruntime session with its inputs' types and shapes, and the names of the states that it updates."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.turns = 0  # how often its states have changed places
        self.bindings: dict[Any, Any] = {}
        self.inputs = {one.name: (_TYPES.get(one.type, np.float32), list(one.shape)) for one in session.get_inputs()}
        self.updates = [one.name[:-4] for one in session.get_outputs() if one.name.endswith(".new")]


def _open(path: Path, threads: int, spin: bool, frozen_prefix: bool) -> _Session:
    try:
        import onnxruntime
    except ImportError:
        raise AutodiffError(
            'onnxruntime is not installed; install it with: pip install "edged-cloudd[serve]"'
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Patterns plan one block for all tensors of a step: up to twice the memory for 0 to 6 % of time.
    options.enable_mem_pattern = False
    levels = onnxruntime.GraphOptimizationLevel
    # The layout of inference (NCHWc) pays where a part is inference; in a graph that only trains it costs reordering.
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if frozen_prefix else levels.ORT_ENABLE_EXTENDED
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        check_model_file(path)
        # Loaded by path, never from bytes: a model from bytes may read any file below the working directory.
        return _Session(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    except ModelError as error:
        raise AutodiffError(str(error)) from error
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise AutodiffError(f"{path.name} cannot be loaded: {str(error)[:300]}") from error


def _on_device(array: NDArray[np.float32]) -> Any:
    import onnxruntime

    # np.ascontiguousarray would give a scalar one axis.
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
