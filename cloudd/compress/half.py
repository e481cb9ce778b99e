"""Half-precision variants: every weight and operator as fp16, input and output as before.

Half the size. A CPU without fp16 arithmetic is slower with it (0.8 to 1.0 times, research/algorithms.md 3.2); it is
for GPUs and NPUs. There a value beyond 65,504 becomes infinite. The gate cannot see that here, because onnxruntime
computes such a model in float on a CPU, so the range of every value is looked at before.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cloudd.compress.errors import CompressError
from cloudd.compress.maker import Materials, Recipe
from cloudd.compress.quantise import first_line, libraries
from edgekit.runtimes import open_session

LARGEST = 65504.0
"""Of half precision."""
_MARGIN = 2.0  # other pictures than the ones that were looked at may go further
_PICTURES = 32


def fp16(materials: Materials, target: Path, *, careful: bool) -> Recipe:
    """See maker.Maker; there is no more careful way."""
    onnx, _ = libraries()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    name, value = _largest(onnx, materials, target.with_suffix(".ranges.onnx"))
    if not value * _MARGIN <= LARGEST:
        raise CompressError(
            f'the value "{name}" inside of the model reaches {value:,.0f}; half precision ends at {LARGEST:,.0f}'
        )
    try:
        onnx.save(convert_float_to_float16(onnx.load(str(materials.model)), keep_io_types=True), str(target))
    except Exception as error:  # the converter's own exceptions have no common base
        raise CompressError(f"the model cannot be converted to half precision: {first_line(error)}") from error
    return Recipe(method="fp16, input and output in float")


def _largest(onnx: Any, materials: Materials, scratch: Path) -> tuple[str, float]:
    """The tensor with the largest magnitude over some calibration pictures, and that magnitude."""
    model = onnx.load(str(materials.model))
    known = {output.name for output in model.graph.output}
    inner = [one for one in model.graph.value_info if one.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    model.graph.output.extend(one for one in inner if one.name not in known)
    onnx.save(model, str(scratch))
    session = open_session(scratch, "onnxruntime")
    found = ("", 0.0)
    for picture in islice(materials.pictures(), _PICTURES):
        for tensor, array in zip(session.outputs, session.run({materials.input: picture}), strict=True):
            value = float(np.abs(array).max(initial=0.0))
            if not value <= found[1]:  # also for NaN
                found = (tensor.name, value)
    session.close()
    scratch.unlink()
    return found
