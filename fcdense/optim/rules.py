"""The update rules. Each is one function of weights w, gradient g and slots, element by element; see `Optimizer`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fcdense.errors import ArgumentError
from fcdense.optim.optimizer import Optimizer, Rate
from fcdense.optim.ranges import FLAG, POSITIVE, SHARE
from fcdense.parameter import Parameter


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum μ::

        v = μ v + g
        w = w - learning_rate v              w = w - learning_rate (g + μ v)  with nesterov

    Without momentum there is no slot: w = w - learning_rate g. `weight_decay` λ adds λ w to g.

    Source: I. Sutskever, J. Martens, G. Dahl, G. Hinton (2013), On the importance of initialization and momentum in
    deep learning, ICML; in the form of PyTorch, where the learning rate is not part of v.
    """

    hyper = {"momentum": SHARE, "nesterov": FLAG}  # noqa: RUF012

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: Rate = 0.01,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        **common: Any,
    ) -> None:
        if nesterov and not momentum:
            raise ArgumentError("SGD: nesterov=True needs momentum > 0.")
        self.slots = ("velocity",) if momentum else ()
        super().__init__(parameters, learning_rate, momentum=momentum, nesterov=nesterov, **common)

    def rule(self, w: Any, g: Any, slots: Sequence[Any], s: Any) -> tuple[Any, ...]:
        if not slots:
            return (w - s.learning_rate * g,)
        v = s.momentum * slots[0] + g
        return w - s.learning_rate * (g + s.momentum * v if s.nesterov else v), v


class Adam(Optimizer):
    """Adam: running means m of g and v of g², both corrected for their start at 0. At a parameter's t-th update::

        m = β1 m + (1 - β1) g
        v = β2 v + (1 - β2) g²
        w = w - learning_rate m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + eps)

    `weight_decay` λ adds λ w to g, so that its strength depends on the history of g; see `AdamW`.

    Source: D. Kingma, J. Ba (2015), Adam: a method for stochastic optimization, ICLR, algorithm 1.
    """

    slots = ("mean", "square")
    hyper = {"beta1": SHARE, "beta2": SHARE, "eps": POSITIVE}  # noqa: RUF012

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: Rate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        **common: Any,
    ) -> None:
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise ArgumentError(f"{type(self).__name__}: betas is {betas!r}, expected two numbers, (0.9, 0.999).")
        self._refuse_options(key for key in ("beta1", "beta2") if key in common)
        super().__init__(parameters, learning_rate, beta1=betas[0], beta2=betas[1], eps=eps, **common)

    def rule(self, w: Any, g: Any, slots: Sequence[Any], s: Any) -> tuple[Any, ...]:
        m = s.beta1 * slots[0] + (1.0 - s.beta1) * g
        v = s.beta2 * slots[1] + (1.0 - s.beta2) * g * g
        # Both corrections taken out of the array arithmetic (Kingma & Ba, end of section 2): they are scalars.
        root = np.sqrt(1.0 - s.beta2**s.step)
        rate = s.learning_rate * root / (1.0 - s.beta1**s.step)
        return w - rate * m / (np.sqrt(v) + s.eps * root), m, v


class AdamW(Adam):
    """Adam with weight decay λ that does not pass through the means: w = (1 - learning_rate λ) w before Adam's update.

    Biases and scales of norms do not decay unless `exclude` says so; ``exclude=()`` is PyTorch's AdamW.

    Source: I. Loshchilov, F. Hutter (2019), Decoupled weight decay regularization, ICLR, algorithm 2.
    """

    decoupled = True

    def __init__(
        self, parameters: Iterable[Parameter], learning_rate: Rate = 1e-3, *, weight_decay: float = 0.01, **options: Any
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay=weight_decay, **options)


class RMSprop(Optimizer):
    """The gradient divided by a running root mean square of itself, with momentum μ if asked for::

        v = α v + (1 - α) g²
        u = μ u + g / (sqrt(v) + eps)
        w = w - learning_rate u

    `weight_decay` λ adds λ w to g. Without momentum there is no slot u.

    Source: T. Tieleman, G. Hinton (2012), Neural networks for machine learning, lecture 6e; in the form of PyTorch,
    where eps is added to the root.
    """

    hyper = {"alpha": SHARE, "eps": POSITIVE, "momentum": SHARE}  # noqa: RUF012

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: Rate = 0.01,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        **common: Any,
    ) -> None:
        self.slots = ("square", "velocity") if momentum else ("square",)
        super().__init__(parameters, learning_rate, alpha=alpha, eps=eps, momentum=momentum, **common)

    def rule(self, w: Any, g: Any, slots: Sequence[Any], s: Any) -> tuple[Any, ...]:
        v = s.alpha * slots[0] + (1.0 - s.alpha) * g * g
        step = g / (np.sqrt(v) + s.eps)
        if len(slots) == 1:
            return w - s.learning_rate * step, v
        u = s.momentum * slots[1] + step
        return w - s.learning_rate * u, v, u
