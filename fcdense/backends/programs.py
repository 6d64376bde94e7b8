"""What surrounds the products and losses of the contract, as programs that each backend makes one pass of."""

from __future__ import annotations

from functools import cache

from fcdense.activation import Activation
from fcdense.expression import Expr
from fcdense.program import Program, trace


@cache
def epilogue(act: Activation, has_bias: bool, with_derivative: bool) -> Program:
    """What follows the product: (z, b) -> f(z + b), and f'(z + b) where asked."""

    def function(z: Expr, *bias: Expr) -> tuple[Expr, ...]:
        pre_activation = z + bias[0] if has_bias else z
        value = act.program(pre_activation)
        return (*value, *act.derivative(pre_activation)) if with_derivative else value

    return trace(function, 2 if has_bias else 1, name=f"{act.name}_epilogue")


@cache
def chain(act: Activation) -> Program:
    """(dy, aux) -> dy * f'."""
    if act.aux == "output":
        assert act.gradient_from_aux is not None
        factor = act.gradient_from_aux
        return trace(lambda dy, y: dy * factor(y)[0], 2, name=f"{act.name}_grad")
    if act.aux == "derivative":
        return trace(lambda dy, slope: dy * slope, 2, name="act_grad")
    slope = act.derivative
    return trace(lambda dy: dy * slope(dy)[0], 1, name=f"{act.name}_grad")


@cache
def weighted(program: Program, has_weight: bool = True) -> Program:
    """(p, t, weight; ..., scale) -> (scale * weight * l, scale * weight * dl/dp); without a weight it counts as 1."""

    def function(p: Expr, t: Expr, *rest: Expr) -> tuple[Expr, Expr]:
        *scalars, scale = rest[has_weight:]
        value, slope = program(p, t, *scalars)
        factor = rest[0] * scale if has_weight else scale
        return value * factor, slope * factor

    return trace(function, 2 + has_weight, program.n_scalars + 1, name=f"weighted_{program.name}")
