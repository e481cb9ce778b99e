"""Every way of running a model: settings of the CPU, a second provider, another process, and a runtime that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from support.models import make_package

from edgekit.runtimes import (
    ModelError,
    Session,
    SessionOptions,
    TensorInfo,
    installed,
    installed_roads,
    open_session,
    placement,
    version,
)
from edgekit.runtimes import remote_driver as remote
from edgekit.runtimes.base import channels_first
from edgekit.runtimes.fake_driver import Script
from edgekit.runtimes.libraries import ROADS
from edgekit.runtimes.onnx_providers import PROVIDERS
from edgekit.runtimes.remote import Array, pack, unpack

OTHER_PYTHON = os.environ.get("EDGED_OPENVINO_PYTHON", "")
"""An interpreter whose onnxruntime has OpenVINO built in; it needs msgspec and numpy too."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_package(tmp_path / "package", kind="conv").path("model.onnx")


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("EDGED_FAKE_RUNTIME", "1")

    def write(**script: object) -> Path:
        path = tmp_path / "model.json"
        path.write_bytes(msgspec.json.encode(msgspec.convert(script, Script)))
        return path

    return write


def blank(session: Session) -> dict[str, np.ndarray]:
    tensor = session.inputs[0]
    return {tensor.name: np.full([size or 1 for size in tensor.shape], 0.25, tensor.dtype)}


# --- onnxruntime ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        SessionOptions(),
        SessionOptions(threads=2),
        SessionOptions(threads=2, spinning=True),
        SessionOptions(arena=False),
        SessionOptions(strict=True),
    ],
)
def test_all_settings_of_the_cpu_give_the_same_answer(model: Path, options: SessionOptions) -> None:
    expected = open_session(model, "onnxruntime").run(blank(open_session(model, "onnxruntime")))
    session = open_session(model, "onnxruntime", options)
    np.testing.assert_allclose(session.run(blank(session))[0], expected[0], rtol=1e-5)


def test_a_session_has_the_threads_it_was_given(model: Path) -> None:
    process = psutil.Process()
    before = process.num_threads()
    sessions = [open_session(model, "onnxruntime", SessionOptions(threads=1)) for _ in range(3)]
    assert process.num_threads() == before, "one thread is the caller's own"
    sessions.append(open_session(model, "onnxruntime", SessionOptions(threads=3)))
    assert process.num_threads() == before + 2


def test_placement_is_recorded_for_strict_sessions_only(model: Path) -> None:
    assert placement(open_session(model, "onnxruntime")) == {}
    counted = placement(open_session(model, "onnxruntime", SessionOptions(strict=True)))
    assert set(counted) == {"CPUExecutionProvider"} and counted["CPUExecutionProvider"] >= 1


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name not in ("cpu", "openvino")])
def test_an_absent_provider_is_an_error_and_not_the_cpu(model: Path, provider: str) -> None:
    with pytest.raises(ModelError, match=provider):
        open_session(model, "onnxruntime", SessionOptions(provider=provider))


def test_an_unknown_provider_or_option_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match='no provider "gpu"'):
        open_session(model, "onnxruntime", SessionOptions(provider="gpu"))
    for name in ("trt_extra_plugin_lib_paths", "library_path", "load_config"):
        with pytest.raises(ModelError, match="takes no option"):
            open_session(
                model, "onnxruntime", SessionOptions(provider="tensorrt", provider_options={name: "/tmp/evil.so"})
            )


@pytest.mark.skipif(not installed("onnxruntime", "openvino"), reason="the extra openvino is not installed")
def test_the_openvino_plug_in_runs_or_says_that_it_cannot_here(model: Path) -> None:
    """Its CPU device exists on Intel's CPUs only. Elsewhere it must be a sentence, and never the plain CPU."""
    options = SessionOptions(provider="openvino", provider_options={"device_type": "CPU"}, strict=True)
    for _ in range(2):  # the plug-in may be registered once a process
        try:
            session = open_session(model, "onnxruntime", options)
        except ModelError as error:
            assert "offers no CPU device on this machine" in str(error)
        else:
            assert set(placement(session)) == {"OpenVINOExecutionProvider"}
            expected = open_session(model, "onnxruntime").run(blank(session))
            np.testing.assert_allclose(session.run(blank(session))[0], expected[0], atol=1e-3)


@pytest.mark.skipif(not OTHER_PYTHON, reason="EDGED_OPENVINO_PYTHON names no interpreter with OpenVINO")
def test_openvino_in_an_interpreter_of_its_own(model: Path) -> None:
    options = SessionOptions(
        provider="openvino", provider_options={"device_type": "CPU"}, strict=True, interpreter=OTHER_PYTHON
    )
    session = open_session(model, "onnxruntime", options)
    try:
        assert set(placement(session)) == {"OpenVINOExecutionProvider"}
        expected = open_session(model, "onnxruntime").run(blank(session))
        np.testing.assert_allclose(session.run(blank(session))[0], expected[0], atol=1e-3)
    finally:
        session.close()


# --- LiteRT ---------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_litert_runs_as_many_at_once_as_it_has_contexts(real_data: Path) -> None:
    path = real_data / "models" / "mlcommons-tiny" / "vww_96_int8.tflite"
    session = open_session(path, "litert", SessionOptions(contexts=2))
    feeds = blank(session)
    expected = session.run(feeds)[0]
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(session.run(feeds)[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8 and all((one == expected).all() for one in results)
    session.close()
    with pytest.raises(ModelError, match="closed"):
        session.run(feeds)


@pytest.mark.real_data
def test_litert_without_the_delegate_is_an_error(real_data: Path) -> None:
    path = real_data / "models" / "mlcommons-tiny" / "vww_96_int8.tflite"
    with pytest.raises(ModelError, match="no provider"):
        open_session(path, "litert", SessionOptions(provider="gpu"))
    with pytest.raises(ModelError, match="libedgetpu"):
        open_session(path, "litert", SessionOptions(provider="edgetpu", provider_options={"device": "usb"}))


# --- another process ------------------------------------------------------------------------------------------------


def test_a_model_in_another_process_answers_as_here(model: Path) -> None:
    here = open_session(model, "onnxruntime")
    there = open_session(model, "onnxruntime", SessionOptions(interpreter=sys.executable, contexts=2, strict=True))
    try:
        assert there.inputs == here.inputs and there.outputs == here.outputs
        np.testing.assert_array_equal(there.run(blank(there))[0], here.run(blank(here))[0])
        assert placement(there) == {"CPUExecutionProvider": pytest.approx(1, abs=50)}
        with pytest.raises(ModelError, match="shape"):
            there.run({there.inputs[0].name: np.zeros((1, 3, 5, 5), np.float32)})
    finally:
        there.close()
    with pytest.raises(ModelError, match="closed"):
        there.run(blank(here))


def test_a_crash_there_is_an_error_here_and_the_next_run_works(scripted) -> None:  # type: ignore[no-untyped-def]
    session = open_session(scripted(crash_at=3), "fake", SessionOptions(interpreter=sys.executable))
    try:
        feeds = blank(session)
        first = session.run(feeds)[0]
        session.run(feeds)
        with pytest.raises(ModelError, match="SIGSEGV"):
            session.run(feeds)
        np.testing.assert_array_equal(session.run(feeds)[0], first)
    finally:
        session.close()


def test_a_hang_there_is_ended(scripted, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(remote, "RUN_TIMEOUT_S", 0.5)
    session = open_session(scripted(hang_at=1), "fake", SessionOptions(interpreter=sys.executable))
    try:
        begun = time.monotonic()
        with pytest.raises(ModelError, match="did not answer within"):
            session.run(blank(session))
        assert time.monotonic() - begun < 30
    finally:
        session.close()


def test_a_talkative_library_does_not_break_a_frame(scripted) -> None:  # type: ignore[no-untyped-def]
    session = open_session(
        scripted(print_at_load="\x00\x00\x00\x02 hello\n"), "fake", SessionOptions(interpreter=sys.executable)
    )
    assert session.run(blank(session))[0].shape == (1, 2)
    session.close()


def test_a_missing_interpreter_or_module_is_a_sentence(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be started"):
        open_session(model, "onnxruntime", SessionOptions(interpreter=str(tmp_path / "python")))
    with pytest.raises(ModelError, match="ended with the status"):
        open_session(model, "onnxruntime", SessionOptions(interpreter="/bin/false"))
    with pytest.raises(ModelError, match="not an ONNX model"):
        model.write_bytes(b"nonsense")
        open_session(model, "onnxruntime", SessionOptions(interpreter=sys.executable))


def test_the_process_ends_with_its_parent(model: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from edgekit.runtimes import SessionOptions, open_session\n"
        f"session = open_session(Path({str(model)!r}), 'onnxruntime', SessionOptions(interpreter=sys.executable))\n"
        "print(session._processes[0]._child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    child.wait(10)


def test_frames_carry_every_dtype_and_refuse_lies() -> None:
    arrays = [np.arange(6, dtype=kind).reshape(2, 3) for kind in ("uint8", "int8", "float16", "float32", "int64")]
    heads, data = pack([f"t{i}" for i in range(len(arrays))], [*arrays])
    for mine, theirs in zip(arrays, unpack(heads, data), strict=True):
        assert mine.dtype == theirs.dtype and (mine == theirs).all()
    for bad in (
        [Array(name="t", dtype="float32", shape=[1 << 40])],
        [Array(name="t", dtype="object", shape=[1])],
        [Array(name="t", dtype="uint8", shape=[-1])],
        [],
    ):
        with pytest.raises(ModelError):
            unpack(bad, data)
    with pytest.raises(ModelError, match="cannot be sent"):
        pack(["t"], [np.array(["text"])])


# --- the scripted runtime, and vendors' drivers that are not here ----------------------------------------------------


def test_the_fake_runtime_needs_to_be_allowed(scripted, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    path = scripted()
    monkeypatch.delenv("EDGED_FAKE_RUNTIME")
    with pytest.raises(ModelError, match="for tests"):
        open_session(path, "fake")


def test_the_fake_runtime_follows_its_speed_curve(scripted) -> None:  # type: ignore[no-untyped-def]
    path = scripted(latency_ms=20, speedup={2: 2.0})

    def seconds(threads: int) -> float:
        session = open_session(path, "fake", SessionOptions(threads=threads))
        begun = time.perf_counter()
        session.run(blank(session))
        return time.perf_counter() - begun

    assert 0.02 <= seconds(1) < 0.035 and 0.01 <= seconds(2) < 0.02


@pytest.mark.parametrize("runtime", ["rknnlite", "hailort"])
def test_a_vendors_runtime_that_is_not_installed_says_so(tmp_path: Path, runtime: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    options = SessionOptions(provider="npu", declared=TensorInfo("input", (1, 3, 8, 8), "float32"))
    assert not installed(runtime, "npu")
    with pytest.raises(ModelError, match="not installed"):
        open_session(path, runtime, options)


def test_rknnlite_by_a_stand_in_for_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the documented calls, and what becomes of their results; the real library was never seen."""
    calls: list[tuple[str, object]] = []

    class RKNNLite:
        NPU_CORE_0 = 1

        def load_rknn(self, path: str) -> int:
            calls.append(("load", path))
            return 0

        def init_runtime(self, core_mask: int = -1) -> int:
            calls.append(("init", core_mask))
            return 0

        def inference(self, inputs: list[np.ndarray], data_format: list[str]) -> list[np.ndarray] | None:
            calls.append(("run", data_format[0]))
            return [np.asarray([[inputs[0].mean(), 1.0]], np.float32)]

        def release(self) -> None:
            calls.append(("release", None))

    module = type(sys)("rknnlite.api")
    module.RKNNLite = RKNNLite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rknnlite", type(sys)("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", module)
    path = tmp_path / "model.rknn"
    path.write_bytes(b"x")
    session = open_session(
        path,
        "rknnlite",
        SessionOptions(
            provider="npu",
            provider_options={"core_mask": "0"},
            contexts=2,
            declared=TensorInfo("input", (1, 3, 8, 8), "float32"),
        ),
    )
    assert session.outputs == [TensorInfo("output0", (1, 2), "float32")]
    assert session.run(blank(session))[0][0, 0] == pytest.approx(0.25)
    session.close()
    assert [name for name, _ in calls] == ["load", "init", "load", "init", "run", "run", "release", "release"]
    assert ("init", 1) in calls and ("run", "nchw") in calls
    with pytest.raises(ModelError, match="closed"):
        session.run({"input": np.zeros((1, 3, 8, 8), np.float32)})


def test_layouts_are_told_apart() -> None:
    assert channels_first(TensorInfo("x", (1, 3, 224, 224), "float32"))
    assert not channels_first(TensorInfo("x", (1, 224, 224, 3), "uint8"))


# --- what is installed ----------------------------------------------------------------------------------------------


def test_roads_are_found_without_importing_anything() -> None:
    code = (
        "import sys\n"
        "from edgekit.runtimes import installed_roads, version\n"
        "roads = installed_roads()\n"
        "assert ('onnxruntime', 'cpu') in roads and ('onnxruntime', 'cuda') not in roads, roads\n"
        "assert version('onnxruntime')\n"
        "assert not {'numpy', 'onnxruntime', 'ai_edge_litert'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_driver_has_a_road_and_the_tested_ones_are_the_few() -> None:
    assert set(PROVIDERS) == {road.provider for road in ROADS if road.runtime == "onnxruntime"}
    assert {(road.runtime, road.provider) for road in ROADS if road.tested} == {
        ("onnxruntime", "cpu"),
        ("onnxruntime", "openvino"),
        ("litert", "cpu"),
    }
    assert installed_roads() <= {(road.runtime, road.provider) for road in ROADS}
    assert version("nonsense") == "" and not installed("onnxruntime", "nonsense")
