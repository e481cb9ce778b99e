"""Coverage-guided fuzzing of infer requests and replies: `python -m tests.fuzz.fuzz_codec [-runs=N] [CORPUS_DIR]`.

Needs atheris. Without it, the same target runs on made-up input in test_fuzz_codec.py.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any

from edged.serve.oip.reply import encode_outputs, model_prefix
from edged.serve.oip.request import Wanted, read_request
from edged.serve.oip.signature import signature
from edged.serve.oip.tensors import RequestError
from edgekit.runtimes import ModelError
from edgekit.runtimes.base import TensorInfo

SIGNATURES = [
    signature("m", [TensorInfo("input", (None, 4), "float32")], [TensorInfo("out", (None, 4), "float32")]),
    signature("m", [TensorInfo("input", (1, 3, 2, 2), "float32")], [TensorInfo("out", (1, 2), "float32")], "input"),
    signature("m", [TensorInfo("t", (None,), "object")], [TensorInfo("out", (None,), "object")]),
    signature("m", [TensorInfo("a", (2,), "uint64"), TensorInfo("b", (), "bool")], []),
]
_HEAD = b'{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP32","parameters":{"binary_data_size":16}}]}'
SEEDS = [
    bytes([len(_HEAD)]) + _HEAD + bytes(16),
    b'\x00{"inputs":[{"name":"t","shape":[2],"datatype":"BYTES","data":["a","b"]}]}',
    b'\x00{"id":"7","inputs":[{"name":"a","shape":[2],"datatype":"UINT64","data":[1,2]},'
    b'{"name":"b","shape":[],"datatype":"BOOL","data":[true]}],"parameters":{"timeout":5}}',
]


def one_input(data: bytes) -> None:
    """The first byte is the length of the JSON (0: the whole is JSON), the rest the body. Refused or read, no more."""
    if not data:
        return
    length = str(data[0]) if data[0] else None
    for wanted in SIGNATURES:
        for header in (length, "0"):
            with contextlib.suppress(RequestError, ModelError):
                request = read_request(data[1:], header, wanted)
                feeds = request.feeds()
                assert request.batch >= 1
                for name, array in feeds.arrays.items():
                    assert wanted.inputs[name].info.accepts(array.shape)
                results = {name: array for array in feeds.arrays.values() for name in wanted.outputs}
                for form in ({"binary": True}, {}, {"classes": 2}):
                    encoded = encode_outputs([Wanted(name, **form) for name in results], results, wanted)
                    buffers, _ = encoded.body(model_prefix("m", "1"), request.id)
                    assert buffers[0].startswith(b"{") if isinstance(buffers[0], bytes) else False


def main() -> None:
    """Run until a bug is found or `-runs` is reached."""
    import atheris  # type: ignore[import-not-found] # not a dependency

    fuzzer: Any = atheris
    # Only what is under test: to instrument everything takes longer than to find something.
    for name in [name for name in sys.modules if name.startswith("edged.serve.oip")]:
        del sys.modules[name]
    with fuzzer.instrument_imports(include=["edged.serve.oip"]):
        target = importlib.import_module("tests.fuzz.fuzz_codec")
    fuzzer.Setup(sys.argv, target.one_input)
    fuzzer.Fuzz()


if __name__ == "__main__":
    main()
