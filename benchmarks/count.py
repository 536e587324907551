"""FLOPs of a traced JAX function: matrix products and convolutions, loops unrolled."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def of(fn: Callable[..., Any], *args: Any) -> int:
    """FLOPs of ``fn(*args)``; a multiply-accumulate counts as two.

    Counted on the jaxpr, after differentiation and with rematerialised parts counted
    again, so that it is what runs. XLA's own estimate counts a loop's body once.

    Args:
      args: arrays or ``ShapeDtypeStruct``.

    Raises:
      ValueError: on a ``while`` loop that is no scan, whose length is unknown.
    """
    return _jaxpr(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contract, _), (batch, _) = params["dimension_numbers"]
        left, right = (v.aval.shape for v in equation.invars)
        inner = math.prod(left[i] for i in contract)
        shared = math.prod(left[i] for i in batch)
        return 2 * math.prod(left) * math.prod(right) // (inner * shared)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        numbers = params["dimension_numbers"]
        out = equation.outvars[0].aval.shape
        inner = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
        return 2 * math.prod(out) * inner
    if name == "while":
        body = _jaxpr(params["body_jaxpr"].jaxpr)
        if body:
            raise ValueError("a while loop holds matrix products; its length is open")
        return 0
    if name == "cond":
        return max(_jaxpr(branch.jaxpr) for branch in params["branches"])
    times = params["length"] if name == "scan" else 1
    return times * sum(_jaxpr(inner) for inner in _inner(params))


def _inner(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
    return found
