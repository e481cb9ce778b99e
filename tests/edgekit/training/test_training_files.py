from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgekit import tensors
from edgekit.architectures import Network, Spec, build
from edgekit.runtimes import SessionOptions, open_session
from edgekit.training import (
    MODEL_FILE,
    WEIGHTS_FILE,
    Best,
    Checkpoint,
    CheckpointError,
    CheckpointFile,
    ForwardModel,
    Progress,
    TrainingError,
    read_weights,
    replace_weights,
    weights_as_inputs,
    write_model,
)
from edgekit.training.checkpoint import decode, encode

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
arrays = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(size=(seed % 4, 3)).astype(np.float32)
)
progresses = st.builds(
    Progress,
    step=st.integers(0, 2**40),
    epoch=st.integers(0, 2**30),
    loss_sum=st.floats(allow_nan=False, allow_infinity=False),
    best=st.builds(Best, score=st.none() | st.floats(0, 1), epoch=st.integers(0, 99)),
    ended=names,
)
checkpoints = st.builds(
    Checkpoint,
    job=names,
    progress=progresses,
    state=st.dictionaries(names, arrays, max_size=4),
    best=st.dictionaries(names, arrays, max_size=3),
)


@given(checkpoints)
def test_a_checkpoint_comes_back_as_it_was(checkpoint: Checkpoint) -> None:
    back = decode(encode(checkpoint), checkpoint.job)
    assert (back.job, back.progress) == (checkpoint.job, checkpoint.progress)
    for group, wanted in ((back.state, checkpoint.state), (back.best, checkpoint.best)):
        assert group.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(group[name], wanted[name])


SAMPLE = encode(Checkpoint(job="j", progress=Progress(step=5), state={"w": np.ones((3, 4), np.float32)}, best={}))


@settings(max_examples=300)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_a_checkpoint_with_any_byte_changed_is_refused_or_says_the_same(place: int, change: int) -> None:
    data = bytearray(SAMPLE)
    data[place] ^= change
    try:
        back = decode(bytes(data), "j")
    except CheckpointError:
        return
    assert encode(back) == SAMPLE  # the byte was a space of the header


@given(st.integers(0, len(SAMPLE) - 1))
def test_a_checkpoint_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError):
        decode(SAMPLE[:length], "j")


def test_a_checkpoint_with_a_hash_of_its_own_but_other_content_is_refused() -> None:
    named = tensors.load(SAMPLE, 1 << 20)
    named["state/w"] = named["state/w"] + 1
    with pytest.raises(CheckpointError, match="was damaged: its hash is another one; remove it to start again"):
        decode(tensors.save(named), "j")


def test_a_checkpoint_with_nan_is_not_written() -> None:
    bad = Checkpoint(job="j", progress=Progress(), state={"w": np.array([np.nan], np.float32)}, best={})
    with pytest.raises(CheckpointError, match='"w" holds NaN or infinity'):
        encode(bad)


def test_a_checkpoint_file_is_missing_then_there_then_replaced(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "checkpoint")
    assert file.read() is None
    for data in (b"one", b"two"):
        file.write(data)
        assert file.read() == data
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def network(**other: Any) -> Network:
    given = {"architecture": "mobilenet_v2", "classes": 3, "input_width": 32, "input_height": 32, "width": 0.25}
    return build(msgspec.convert({**given, **other}, Spec))


def run(folder: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    session = open_session(folder / MODEL_FILE, "onnxruntime", SessionOptions(), frozenset([WEIGHTS_FILE]))
    return np.asarray(session.run({"image": image})[0])


def whole(model: onnx.ModelProto, image: NDArray[np.float32]) -> NDArray[np.float32]:
    import onnxruntime

    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": image})[0])


IMAGE = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)


def test_a_written_model_answers_as_the_one_in_memory(tmp_path: Path) -> None:
    made = network()
    write_model(made.model, tmp_path)
    np.testing.assert_allclose(run(tmp_path, IMAGE), whole(made.model, IMAGE), rtol=1e-5, atol=1e-7)
    statistics = {
        name for node in made.model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]
    }
    assert set(read_weights(tmp_path / WEIGHTS_FILE)) == set(made.parameters()) | statistics
    assert (tmp_path / MODEL_FILE).stat().st_size < 100_000


def test_replaced_weights_are_what_the_model_answers_with(tmp_path: Path) -> None:
    first, other = network(seed=0), network(seed=1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_model(first.model, tmp_path / "a")
    write_model(other.model, tmp_path / "b")
    before = read_weights(tmp_path / "a" / WEIGHTS_FILE)
    new = read_weights(tmp_path / "b" / WEIGHTS_FILE)
    new["block1.depthwise_norm.mean"] = new["block1.depthwise_norm.mean"] + 0.1
    replace_weights(tmp_path / "a" / WEIGHTS_FILE, new)
    changed = onnx.ModelProto()
    changed.CopyFrom(other.model)
    for tensor in changed.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(onnx.numpy_helper.from_array(new[tensor.name], tensor.name))
    np.testing.assert_allclose(run(tmp_path / "a", IMAGE), whole(changed, IMAGE), rtol=1e-5, atol=1e-7)
    replace_weights(tmp_path / "a" / WEIGHTS_FILE, {})
    assert read_weights(tmp_path / "a" / WEIGHTS_FILE).keys() == before.keys()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("head.linear.bias", np.zeros(4, np.float32), r'has float32 \[3\] as "head.linear.bias"'),
        ("head.linear.bias", np.zeros(3), r"float64 \[3\] was trained"),
        ("nothing", np.zeros(3, np.float32), 'has nothing as "nothing"'),
        ("head.linear.bias", np.array([0, np.inf, 0], np.float32), "no float32 tensor of finite values"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path: Path, name: str, value: Any, words: str) -> None:
    write_model(network().model, tmp_path)
    before = (tmp_path / WEIGHTS_FILE).read_bytes()
    with pytest.raises(TrainingError, match=words):
        replace_weights(tmp_path / WEIGHTS_FILE, {name: value})
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == before


def test_a_model_can_be_written_with_other_weights_than_its_own(tmp_path: Path) -> None:
    made = network()
    bias = np.array([1, 2, 3], np.float32)
    write_model(made.model, tmp_path, {"head.linear.bias": bias})
    np.testing.assert_allclose(run(tmp_path, IMAGE), whole(made.model, IMAGE) + bias, rtol=1e-5, atol=1e-6)
    with pytest.raises(TrainingError, match='no weight "nothing"'):
        write_model(made.model, tmp_path, {"nothing": bias})


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_FILE
    with pytest.raises(TrainingError, match=r"weights.safetensors cannot be read: No such file"):
        read_weights(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(TrainingError, match="holds no weights"):
        read_weights(path)
    path.write_bytes(tensors.save({"w": np.zeros(3)}))
    with pytest.raises(TrainingError, match=r'"w" of weights\.safetensors is no float32 tensor'):
        read_weights(path)


def test_the_forward_model_answers_with_the_weights_that_it_is_given(tmp_path: Path) -> None:
    made, other = network(seed=0), network(seed=1)
    write_model(other.model, tmp_path)
    weights = read_weights(tmp_path / WEIGHTS_FILE)
    onnx.save(weights_as_inputs(made.model, weights), tmp_path / "forward.onnx")
    forward = ForwardModel(tmp_path / "forward.onnx")
    answers = forward({"image": IMAGE}, {**weights, "not of this model": np.zeros(3, np.float32)})
    np.testing.assert_allclose(answers["logits"], whole(other.model, IMAGE), rtol=1e-4, atol=1e-6)
    with pytest.raises(TrainingError, match='no weight "nothing"'):
        weights_as_inputs(made.model, ["nothing"])
