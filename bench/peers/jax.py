"""JAX on the CPU: the whole step under `jax.jit`, its parameters and optimizer state donated."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import Arrays, Case, Run
from ..networks import Network, weights
from ..questions.train import Train

VERSIONS = {"jax": jax.__version__}

jax.config.update("jax_platforms", "cpu")  # else it would take the GPU where there is one

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}


def prepare(case: Case, data: Arrays) -> Run | None:
    """Prediction and training of networks; not in float16, for which JAX has no loss scale."""
    if not isinstance(case, Network) or case.activation not in ACTIVATIONS or case.dtype == "float16":
        return None
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    layers, f = len(case.widths) - 1, ACTIVATIONS[case.activation]
    multiplied = jnp.dtype(case.dtype)

    def logits(parameters: dict[str, Any], x: Any) -> Any:
        for index in range(layers):
            w, b = (parameters[f"{name}{index}"].astype(multiplied) for name in "wb")
            z = x.astype(multiplied) @ w + b
            x = f(z)
        return z.astype(data["x"].dtype)

    parameters = {name: jnp.array(data[name]) for name in weights(data)}
    x, target = jnp.asarray(data["x"]), jnp.asarray(data["target"])
    if not isinstance(case, Train):
        return predict(jax.jit(logits), parameters, x, case.rows)
    if case.optimizer not in OPTIMIZERS:
        return None
    start, update = OPTIMIZERS[case.optimizer]

    def loss(parameters: dict[str, Any], x: Any, target: Any) -> Any:
        log_p = jax.nn.log_softmax(logits(parameters, x))
        return -jnp.take_along_axis(log_p, target[:, None], axis=1).mean()

    def step(parameters: Any, state: Any, x: Any, target: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)(parameters, x, target)
        return value, *update(case.learning_rate, parameters, gradients, state)

    return train(jax.jit(step, donate_argnums=(0, 1)), logits, parameters, start(parameters), x, target, case.rows)


def predict(logits: Callable[..., Any], parameters: Any, x: Any, rows: int) -> Run:
    """The logits, waited for: who predicts reads them."""
    results: dict[str, Any] = {}

    def call() -> None:
        results["logits"] = logits(parameters, x).block_until_ready()

    return Run(call, lambda: {"logits": np.asarray(results["logits"][:rows])})


def train(
    step: Callable[..., Any], logits: Callable[..., Any], parameters: Any, state: Any, x: Any, target: Any, rows: int
) -> Run:
    """The step, over and over. Nobody waits for one step before the next is begun, as in a loop that prints nothing."""
    value: Any = None
    logits = jax.jit(logits)

    def call() -> None:
        nonlocal value, parameters, state
        value, parameters, state = step(parameters, state, x, target)

    def outputs() -> Arrays:
        return {"loss": np.asarray(value), "logits": np.asarray(logits(parameters, x[:rows]))}

    return Run(call, outputs, lambda: jax.block_until_ready((value, parameters)))


def sgd(learning_rate: float, parameters: Any, gradients: Any, state: Any) -> Any:
    """w - η g."""
    return jax.tree.map(lambda w, g: w - learning_rate * g, parameters, gradients), state


def adam(learning_rate: float, parameters: Any, gradients: Any, state: Any) -> Any:
    """Adam as Kingma and Ba (2015) write it in algorithm 1."""
    steps, first, second = state
    steps = steps + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
    # 1 - β^t, which float32 would leave with four digits in the first steps
    m_rest, v_rest = (-jnp.expm1(steps * math.log(beta)) for beta in (0.9, 0.999))
    m_scale, v_scale = learning_rate / m_rest, 1 / v_rest
    parameters = jax.tree.map(
        lambda w, m, v: w - m_scale * m / (jnp.sqrt(v_scale * v) + 1e-8), parameters, first, second
    )
    return parameters, (steps, first, second)


def adamw(learning_rate: float, parameters: Any, gradients: Any, state: Any) -> Any:
    """Adam after weights have decayed, as Loshchilov and Hutter (2019) write it in algorithm 2."""
    decayed = jax.tree.map(lambda w: w * (1 - learning_rate * 0.01), parameters)
    return adam(learning_rate, decayed, gradients, state)


def moments(parameters: Any) -> Any:
    """Adam's state before the first step."""
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    return jnp.zeros(()), zeros, jax.tree.map(jnp.copy, zeros)


OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
    "adam": (moments, adam),
    "adamw": (moments, adamw),
    "sgd": (lambda parameters: (), sgd),
}
