"""Reads a PyTorch program, writes it as ONNX and answers inputs with it; runs under the user's own interpreter.

Nothing but the standard library and torch, any Python from 3.9 on. It reads `order.json` and writes `answer.json` in
its working directory; see `cloudd.importing.torch_road`. Once the libraries are loaded an audit hook ends every attempt
to look up a class for a pickle, to start a program or to connect to anything: what a file holds stays data.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

OPSET = 18
_FORBIDDEN = ("pickle.find_class", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.")


class Refused(Exception):
    """The text is for the user."""


def main() -> int:
    """Carry out the order. Exit status 0 with an answer, 1 with a refusal."""
    order = json.loads(Path("order.json").read_text("utf-8"))
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        return _say({"refused": f"{sys.executable} has no PyTorch ({error}); name another interpreter with --python"})
    torch.set_num_threads(1)
    scripted = order["kind"] == "torchscript"
    libraries = ("torch.onnx", "torch.jit", "torch.export", "torch.export.pt2_archive._package", "onnxscript")
    for name in libraries:  # before the hook: what they do when they are loaded is their own business
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    sys.addaudithook(_audit)
    try:
        program = _scripted(torch, order["source"]) if scripted else _exported(torch, order["source"])
        with torch.no_grad():
            answer = _export(torch, program, order) if order["do"] == "export" else _run(torch, program, order)
    except Refused as error:
        return _say({"refused": str(error)})
    return _say(answer)


def _audit(event: str, arguments: Any) -> None:
    if event.startswith(_FORBIDDEN):
        raise RuntimeError(f"the file wants {event} {arguments!r:.100}, which is refused")


def _scripted(torch: Any, source: str) -> Any:
    try:
        return torch.jit.load(source, map_location="cpu").eval()
    except Exception as error:
        raise Refused(f"torch {torch.__version__} cannot read this TorchScript: {_line(error)}") from None


def _exported(torch: Any, source: str) -> Any:
    try:
        program = torch.export.load(source)
    except Exception as error:
        raise Refused(f"torch {torch.__version__} cannot read this .pt2: {_line(error)}") from None
    for node in program.graph.nodes:
        place = {"aten.batch_norm.default": 5, "aten.dropout.default": 2}.get(str(node.target))
        if place is not None and len(node.args) > place and node.args[place] is True:
            raise Refused(f"node {node.name} is in training mode; export the model again after model.eval()")
    return program


def _input_of(torch: Any, program: Any, wanted: list[int] | None) -> tuple[list[int], bool]:
    """The shape of the one input with a batch of 1, and whether the program takes other batches."""
    if not hasattr(program, "graph_signature"):  # TorchScript does not say
        if wanted is None:
            raise Refused(
                "a TorchScript file does not say how large its input is; say --size WIDTHxHEIGHT, and --colour grey "
                "where it has one channel"
            )
        return list(wanted), False
    value = _value(program)
    if value.dtype != torch.float32 or value.dim() != 4:
        raise Refused(f"the model's input is {value.dtype} with {value.dim()} axes; float32 with 4 axes is a picture")
    fixed = [one if isinstance(one, int) else None for one in value.shape]
    if fixed[0] not in (None, 1):
        raise Refused(
            f"the model was exported for a batch of {fixed[0]}; export it with an example of 1 picture, or with "
            'dynamic_shapes=({0: torch.export.Dim("batch")},)'
        )
    shape = [1]
    for place, size in enumerate(fixed[1:]):
        if size is None and wanted is None:
            raise Refused("the model takes pictures of several sizes; say --size WIDTHxHEIGHT")
        shape.append(int(size) if size is not None else wanted[place + 1])  # type: ignore[index]
    return shape, fixed[0] is None


def _value(program: Any) -> Any:
    """The one input of an exported program, as it was when that was made."""
    names = list(program.graph_signature.user_inputs)
    if len(names) != 1:
        raise Refused(f"the model has {len(names)} inputs; a package takes one picture")
    return next(node.meta["val"] for node in program.graph.nodes if node.name == names[0])


def _export(torch: Any, program: Any, order: dict[str, Any]) -> dict[str, Any]:
    shape, open_batch = _input_of(torch, program, order["shape"])
    example = torch.zeros(shape)
    try:
        outputs = _flat(_callable(program)(example))
    except Exception as error:
        raise Refused(f"the model cannot be run on {'x'.join(map(str, shape))}: {_line(error)}") from None
    target, exported = order["target"], hasattr(program, "graph_signature")
    modern = exported and importlib.util.find_spec("onnxscript") is not None
    remedy = "Export it as ONNX where its source is: torch.onnx.export(model, ..., dynamo=True, optimize=False)"
    if exported and not modern:
        remedy = f"Another road is open with: {sys.executable} -m pip install onnx onnxscript"
    try:
        if modern:
            road = "torch.onnx.export(dynamo=True, optimize=False)"
            torch.onnx.export(
                program, (), target, dynamo=True, optimize=False, opset_version=OPSET, external_data=False
            )
        else:
            road = _by_trace(torch, program, example, len(outputs), target)
    except Exception as error:
        raise Refused(f"torch {torch.__version__} cannot write this model as ONNX: {_line(error)}. {remedy}") from None
    return {
        "input": shape,
        "open_batch": open_batch,
        "outputs": [list(one.shape) for one in outputs],
        "road": road,
        "versions": {"torch": str(torch.__version__), "python": sys.version.split()[0]},
    }


def _by_trace(torch: Any, program: Any, example: Any, outputs: int, target: str) -> str:
    """Export with what torch brings itself. BatchNormalization is not folded: TrainingMode.PRESERVE leaves it alone."""
    road = "torch.onnx.export(dynamo=False) of the TorchScript"
    if hasattr(program, "graph_signature"):
        road = "torch.jit.trace of the exported program, torch.onnx.export(dynamo=False)"
        if any(not isinstance(size, int) for size in _value(program).shape):  # an open size cannot be traced
            program = torch.export.export(_callable(program), (example,))
        program = torch.jit.trace(_callable(program), (example,), check_trace=False)
    torch.onnx.export(
        program,
        (example,),
        target,
        dynamo=False,
        opset_version=OPSET,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["input"],
        output_names=["output"] if outputs == 1 else [f"output{number}" for number in range(outputs)],
    )
    return road


def _run(torch: Any, program: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Answer the float32 tensors that lie one behind the other in a file; the outputs go into another."""
    call, shape = _callable(program), order["shape"]
    count = 4
    for size in shape:
        count *= size
    data = bytearray(Path(order["inputs"]).read_bytes())
    shapes: list[list[int]] = []
    with Path(order["outputs"]).open("wb") as sink:
        for start in range(0, len(data), count):
            example = torch.frombuffer(data, dtype=torch.float32, count=count // 4, offset=start).reshape(shape).clone()
            try:
                found = _flat(call(example))
            except Exception as error:
                raise Refused(f"the model failed: {_line(error)}") from None
            shapes = [list(one.shape) for one in found]
            for one in found:
                plain = one.detach().to(torch.float32).contiguous()
                sink.write(ctypes.string_at(plain.data_ptr(), plain.numel() * 4))
    return {"outputs": shapes}


def _callable(program: Any) -> Any:
    if not hasattr(program, "graph_signature"):
        return program
    try:
        return program.module(check_guards=False)
    except TypeError:  # before torch 2.9
        return program.module()


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in _flat(part)]
    if not hasattr(value, "data_ptr"):
        raise Refused(f"the model gives a {type(value).__name__}; only tensors can be outputs")
    return [value]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _say(answer: dict[str, Any]) -> int:
    Path("answer.json").write_text(json.dumps(answer), "utf-8")
    return 1 if "refused" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
