"""Convolutions for onnx's reference evaluator: its own are slow, and the transposed one is wrong with groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Array = Any


def _windows(kernel: int, stride: int, dilation: int, out: int) -> Array:
    """Positions in the padded axis, [out, kernel]."""
    return np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * dilation


class Conv(OpRun):
    """Over two axes, with explicit or automatic pads."""

    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, bias=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None
    ):
        s, d, g, k = strides or [1, 1], dilations or [1, 1], group or 1, w.shape[2:]
        p = list(pads or [0, 0, 0, 0])
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            both = [
                max((-(-x.shape[2 + i] // s[i]) - 1) * s[i] + (k[i] - 1) * d[i] + 1 - x.shape[2 + i], 0) for i in (0, 1)
            ]
            first = [one // 2 if auto_pad == "SAME_UPPER" else one - one // 2 for one in both]
            p = [*first, *(both[i] - first[i] for i in (0, 1))]
        x = np.pad(x, ((0, 0), (0, 0), (p[0], p[2]), (p[1], p[3])))
        out = [(x.shape[2 + i] - (k[i] - 1) * d[i] - 1) // s[i] + 1 for i in (0, 1)]
        rows, columns = (_windows(k[i], s[i], d[i], out[i]) for i in (0, 1))
        seen = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]  # N C Oh Ow kh kw
        n, c = x.shape[:2]
        seen = seen.reshape(n, g, c // g, *out, *k)
        y = np.einsum("ngchwij,gocij->ngohw", seen, w.reshape(g, w.shape[0] // g, *w.shape[1:]), optimize=True)
        y = y.reshape(n, w.shape[0], *out)
        return (y if bias is None else y + bias[:, None, None],)


class ConvTranspose(OpRun):
    """Over two axes, with explicit pads."""

    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self,
        x,
        w,
        bias=None,
        auto_pad=None,
        dilations=None,
        group=None,
        kernel_shape=None,
        output_padding=None,
        output_shape=None,
        pads=None,
        strides=None,
    ):
        s, d, g, k = strides or [1, 1], dilations or [1, 1], group or 1, w.shape[2:]
        p, extra = pads or [0, 0, 0, 0], output_padding or [0, 0]
        n, c = x.shape[:2]
        full = [(x.shape[2 + i] - 1) * s[i] + (k[i] - 1) * d[i] + 1 + extra[i] for i in (0, 1)]
        parts = np.einsum(
            "ngchw,gcoij->ngohwij",
            x.reshape(n, g, c // g, *x.shape[2:]),
            w.reshape(g, c // g, *w.shape[1:]),
            optimize=True,
        )
        y = np.zeros((n, g, w.shape[1], *full), x.dtype)
        rows, columns = (_windows(k[i], s[i], d[i], x.shape[2 + i]) for i in (0, 1))
        index = (slice(None), slice(None), slice(None), rows[:, None, :, None], columns[None, :, None, :])
        np.add.at(y, index, parts)
        y = y.reshape(n, -1, *full)[:, :, p[0] : full[0] - p[2], p[1] : full[1] - p[3]]
        return (y if bias is None else y + bias[:, None, None],)


def _seen(x: Array, fill: float, k: Any, s: Any, p: Any) -> tuple[Array, Array]:
    """What every window of a pool sees, [N, C, Oh, Ow, kh * kw], and the flat places in the unpadded plane."""
    _height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (p[0], p[2]), (p[1], p[3])), constant_values=fill)
    out = [(padded.shape[2 + i] - k[i]) // s[i] + 1 for i in (0, 1)]
    rows, columns = (_windows(k[i], s[i], 1, out[i]) for i in (0, 1))
    seen = padded[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    places = (rows - p[0])[:, None, :, None] * width + (columns - p[1])[None, :, None, :]
    return seen.reshape(*seen.shape[:4], -1), places.reshape(*out, -1)


class MaxPool(OpRun):
    """Over two axes, with explicit pads; also the indices."""

    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        dilations=None,
        kernel_shape=None,
        pads=None,
        storage_order=None,
        strides=None,
    ):
        seen, places = _seen(x, -np.inf, kernel_shape, strides, pads or [0, 0, 0, 0])
        first = seen.argmax(-1)
        y = np.take_along_axis(seen, first[..., None], -1)[..., 0]
        flat = np.take_along_axis(np.broadcast_to(places, seen.shape), first[..., None], -1)[..., 0]
        planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], 1, 1) * (x.shape[2] * x.shape[3])
        return (y, flat + planes) if len(self.onnx_node.output) > 1 else (y,)


class AveragePool(OpRun):
    """Over two axes, with explicit pads."""

    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self,
        x,
        auto_pad=None,
        ceil_mode=None,
        count_include_pad=None,
        dilations=None,
        kernel_shape=None,
        pads=None,
        strides=None,
    ):
        p = pads or [0, 0, 0, 0]
        total = _seen(x, 0.0, kernel_shape, strides, p)[0].sum(-1)
        if count_include_pad:
            return (total / (kernel_shape[0] * kernel_shape[1]),)
        return (total / _seen(np.ones_like(x), 0.0, kernel_shape, strides, p)[0].sum(-1),)


OPERATORS = [AveragePool, Conv, ConvTranspose, MaxPool]
