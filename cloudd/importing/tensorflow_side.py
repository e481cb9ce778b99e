"""Writes a Keras model or a TensorFlow SavedModel as TFLite and answers inputs; runs under the user's own interpreter.

Nothing but the standard library, numpy and tensorflow, any Python from 3.9 on. It reads `order.json` and writes
`answer.json` in its working directory; see `cloudd.importing.tensorflow_road`. Once the libraries are loaded an audit
hook ends every attempt to look up a class for a pickle, to start a program or to connect to anything.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

_FORBIDDEN = ("pickle.find_class", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.")


class Refused(Exception):
    """The text is for the user."""


def main() -> int:
    """Carry out the order. Exit status 0 with an answer, 1 with a refusal."""
    order = json.loads(Path("order.json").read_text("utf-8"))
    try:
        tf: Any = importlib.import_module("tensorflow")
    except ImportError as error:
        return _say(
            {"refused": f"{sys.executable} has no TensorFlow ({error}); name another interpreter with --python"}
        )
    np: Any = importlib.import_module("numpy")
    for name in ("tensorflow.lite", "keras.saving"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    sys.addaudithook(_audit)
    try:
        model = _read(tf, order)
        answer = _convert(tf, model, order) if order["do"] == "export" else _run(tf, np, model, order)
    except Refused as error:
        return _say({"refused": str(error)})
    return _say(answer)


def _audit(event: str, arguments: Any) -> None:
    if event.startswith(_FORBIDDEN):
        raise RuntimeError(f"the file wants {event} {arguments!r:.100}, which is refused")


def _read(tf: Any, order: dict[str, Any]) -> Any:
    try:
        if order["kind"] == "saved_model":
            return tf.saved_model.load(order["source"])
        # safe_mode refuses layers that hold Python code.
        return tf.keras.models.load_model(order["source"], compile=False, safe_mode=True)
    except Exception as error:
        raise Refused(f"TensorFlow {tf.__version__} cannot read this model: {_line(error)}") from None


def _convert(tf: Any, model: Any, order: dict[str, Any]) -> dict[str, Any]:
    lite = tf.lite.TFLiteConverter
    try:
        converter = (
            lite.from_saved_model(order["source"]) if order["kind"] == "saved_model" else lite.from_keras_model(model)
        )
        Path(order["target"]).write_bytes(converter.convert())
    except Exception as error:
        raise Refused(f"TensorFlow {tf.__version__} cannot write this model as TFLite: {_line(error)}") from None
    return {
        "road": "tf.lite.TFLiteConverter, not quantised",
        "versions": {"tensorflow": str(tf.__version__), "python": sys.version.split()[0]},
    }


def _run(tf: Any, np: Any, model: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Answer the float32 tensors that lie one behind the other in a file; the outputs go into another."""
    call = _callable(model, order["kind"])
    data = np.frombuffer(Path(order["inputs"]).read_bytes(), "<f4").reshape([-1, *order["shape"]])
    shapes: list[list[int]] = []
    with Path(order["outputs"]).open("wb") as sink:
        for one in data:
            try:
                found = _flat(call(tf.constant(one)))
            except Exception as error:
                raise Refused(f"the model failed: {_line(error)}") from None
            shapes = [list(part.shape) for part in found]
            for part in found:
                sink.write(np.ascontiguousarray(part, "<f4").tobytes())
    return {"outputs": shapes}


def _callable(model: Any, kind: str) -> Any:
    if kind != "saved_model":
        return lambda x: model(x, training=False)
    signature = model.signatures.get("serving_default")
    if signature is None:
        raise Refused('the SavedModel has no signature "serving_default"; save it with model.export(DIRECTORY)')
    names = list(signature.structured_input_signature[1])
    if len(names) != 1:
        raise Refused(f"the model has {len(names)} inputs; a package takes one picture")
    return lambda x: signature(**{names[0]: x})


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in _flat(part)]
    return [value.numpy()]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _say(answer: dict[str, Any]) -> int:
    Path("answer.json").write_text(json.dumps(answer), "utf-8")
    return 1 if "refused" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
