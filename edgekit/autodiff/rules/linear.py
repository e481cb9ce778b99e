"""Gradients of matrix products."""

from __future__ import annotations

from edgekit.autodiff.builder import GraphBuilder, Node, Shape, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules.registry import Gradients, Needs, rule


@rule("Gemm")
def _gemm(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """y = alpha op(A) op(B) + beta C."""
    left, right, bias = node.input(0), node.input(1), node.optional(2)
    turned_left, turned_right = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))

    def product(one: Value, other: Value, turn_one: bool, turn_other: bool) -> Value:
        return b.emit("Gemm", [one, other], {"alpha": alpha, "transA": int(turn_one), "transB": int(turn_other)})

    d_left = d_right = d_bias = None
    if needs[0]:
        d_left = product(right, g, turned_right, True) if turned_left else product(g, right, False, not turned_right)
    if needs[1]:
        d_right = product(g, left, True, turned_left) if turned_right else product(left, g, not turned_left, False)
    if bias is not None and needs[2]:
        d_bias = b.scaled(b.unbroadcast(g, bias), beta)
    return [d_left, d_right, d_bias]


@rule("MatMul")
def _matmul(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    left, right = node.input(0), node.input(1)
    if left.rank < 2 or right.rank < 2:
        raise AutodiffError("a MatMul with a vector has no gradient rule; export it with a matrix of one row or column")
    d_left = d_right = None
    if needs[0]:
        product = b.emit("MatMul", [g, _turned(b, right)], shape=_batched(g, left))
        d_left = b.unbroadcast(product, left)
    if needs[1]:
        if right.rank == 2 and left.rank > 2:  # a weight: all rows of the batch in one product
            rows = b.reshape(left, [-1, left.size(-1)])
            d_right = b.emit("Gemm", [rows, b.reshape(g, [-1, g.size(-1)])], {"transA": 1}, shape=right.shape)
        else:
            product = b.emit("MatMul", [_turned(b, left), g], shape=_batched(g, right))
            d_right = b.unbroadcast(product, right)
    return [d_left, d_right]


def _turned(b: GraphBuilder, value: Value) -> Value:
    axes = list(range(value.rank))
    return b.transpose(value, [*axes[:-2], axes[-1], axes[-2]])


def _batched(g: Value, like: Value) -> Shape:
    return (*g.shape[:-2], *like.shape[-2:])


@rule("Einsum")
def _einsum(b: GraphBuilder, node: Node, g: Value, needs: Needs) -> Gradients:
    """The gradient of one operand is the product of the output's with the others, summed to its letters."""
    terms, arrow, result = str(node.get("equation", "")).replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow or "." in terms or any(len(set(one)) != len(one) for one in letters):
        raise AutodiffError("an Einsum needs an explicit result, no ellipsis and no letter twice in one operand")
    grads: list[Value | None] = []
    for index, mine in enumerate(letters):
        others = [letters[i] for i in range(len(letters)) if i != index]
        if set(mine) - set(result) - set("".join(others)):
            raise AutodiffError("an Einsum that sums an axis of one operand alone has no rule; write it as ReduceSum")
        if not needs[index]:
            grads.append(None)
            continue
        equation = ",".join([result, *others]) + "->" + mine
        operands = [g, *(node.input(i) for i in range(len(letters)) if i != index)]
        grads.append(b.emit("Einsum", operands, {"equation": equation}, shape=node.input(index).shape))
    return grads
