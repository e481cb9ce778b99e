"""Gradients of arithmetic with broadcasting, of powers and of elementary functions."""

from __future__ import annotations

import math

import numpy as np

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules.registry import Gradients, Needs, rule

# ------------------------------------------------------------------ two inputs


@rule("Add")
def _add(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.unbroadcast(g, node.input(i)) if needs[i] else None for i in (0, 1)]


@rule("Sub")
def _sub(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    left = b.unbroadcast(g, node.input(0)) if needs[0] else None
    right = b.emit("Neg", [b.unbroadcast(g, node.input(1))]) if needs[1] else None
    return [left, right]


@rule("Mul")
def _mul(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    left, right = node.input(0), node.input(1)
    return [
        b.unbroadcast(b.mul(g, right), left) if needs[0] else None,
        b.unbroadcast(b.mul(g, left), right) if needs[1] else None,
    ]


@rule("Div")
def _div(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    left, right = node.input(0), node.input(1)
    quotient = b.div(g, right)
    down = b.emit("Neg", [b.mul(quotient, node.outputs[0])]) if needs[1] else None
    return [
        b.unbroadcast(quotient, left) if needs[0] else None,
        b.unbroadcast(down, right) if down else None,
    ]


@rule("Sum")
def _sum(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.unbroadcast(g, node.input(i)) if needs[i] else None for i in range(len(node.inputs))]


@rule("Mean")
def _mean(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    part = b.scaled(g, 1.0 / len(node.inputs))
    return [b.unbroadcast(part, node.input(i)) if needs[i] else None for i in range(len(node.inputs))]


@rule("Max", "Min")
def _extreme(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """Inputs that are the extreme together share its gradient, as in PyTorch's maximum."""
    hits = [b.emit("Equal", [one, node.outputs[0]]) for one in node.inputs if one]
    shares = [b.emit("Cast", [hit], {"to": _tensor_type(g)}) for hit in hits]
    part = b.div(g, b.total(shares)) if len(shares) > 1 else g
    return [b.unbroadcast(b.mul(part, share), node.input(i)) if needs[i] else None for i, share in enumerate(shares)]


@rule("Pow")
def _pow(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    base, exponent = node.input(0), b.literal(node.input(1))
    if needs[1] or exponent is None or exponent.size != 1:
        raise AutodiffError("only powers with one constant exponent have a gradient; write x ** y as exp(y * log(x))")
    power = float(exponent.reshape(-1)[0])
    if power == 2.0:
        slope = b.add(base, base)
    else:
        slope = b.scaled(b.emit("Pow", [base, b.scalar(power - 1.0, base.rank)]), power)
    return [b.mul(g, slope), None]


@rule("Where")
def _where(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    condition, zero = node.input(0), b.scalar(0.0, g.rank)
    yes = b.unbroadcast(b.emit("Where", [condition, g, zero]), node.input(1)) if needs[1] else None
    no = b.unbroadcast(b.emit("Where", [condition, zero, g]), node.input(2)) if needs[2] else None
    return [None, yes, no]


# ------------------------------------------------------------------ one input


@rule("Identity")
def _identity(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [g]


@rule("Cast")
def _cast(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    source = node.input(0)
    if source.dtype.kind != "f":
        return [None]
    return [g if source.dtype == g.dtype else b.emit("Cast", [g], {"to": _tensor_type(source)})]


@rule("Neg")
def _neg(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.emit("Neg", [g])]


@rule("Exp")
def _exp(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.mul(g, node.outputs[0])]


@rule("Log")
def _log(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.div(g, node.input(0))]


@rule("Sqrt")
def _sqrt(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.div(b.scaled(g, 0.5), node.outputs[0])]


@rule("Reciprocal")
def _reciprocal(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    y = node.outputs[0]
    return [b.emit("Neg", [b.mul(g, b.mul(y, y))])]


@rule("Abs")
def _abs(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.mul(g, b.emit("Sign", [node.input(0)]))]


@rule("Sin")
def _sin(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.mul(g, b.emit("Cos", [node.input(0)]))]


@rule("Cos")
def _cos(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    return [b.emit("Neg", [b.mul(g, b.emit("Sin", [node.input(0)]))])]


@rule("Atan")
def _atan(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x = node.input(0)
    return [b.div(g, b.add(b.mul(x, x), b.scalar(1.0, x.rank)))]


@rule("Erf")
def _erf(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    x = node.input(0)
    slope = b.scaled(b.emit("Exp", [b.emit("Neg", [b.mul(x, x)])]), 2.0 / math.sqrt(math.pi))
    return [b.mul(g, slope)]


def _tensor_type(value: Value) -> int:
    return {np.dtype(np.float32): 1, np.dtype(np.float16): 10, np.dtype(np.float64): 11}[value.dtype]
