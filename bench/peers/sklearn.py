"""scikit-learn's MLPClassifier: one `partial_fit` for each batch, as it offers to who has batches.

A call includes its checks of the data and its encoding of the classes. Regularization, momentum and early stopping are
off. Its Adam adds epsilon before the bias correction, not after as the other peers do, which shows in the error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sklearn
from sklearn.neural_network import MLPClassifier

from ..cases import Arrays, Case, Run
from ..networks import Network
from ..questions.train import Train

VERSIONS = {"scikit-learn": sklearn.__version__}

ACTIVATIONS = {"linear": "identity", "relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}


def prepare(case: Case, data: Arrays) -> Run | None:
    """Training and prediction, which ends in a softmax; with two classes it would have one output only."""
    if not isinstance(case, Network) or case.is_mixed or case.activation not in ACTIVATIONS or case.widths[-1] < 3:
        return None
    optimizer = case.optimizer if isinstance(case, Train) else "sgd"
    if optimizer not in {"adam", "sgd"}:
        return None
    model = MLPClassifier(
        hidden_layer_sizes=case.widths[1:-1],
        activation=ACTIVATIONS[case.activation],
        solver=optimizer,
        learning_rate_init=case.learning_rate if isinstance(case, Train) else 1e-3,
        batch_size=case.batch,
        alpha=0.0,
        momentum=0.0,
        nesterovs_momentum=False,
        shuffle=False,
    )
    x, target = data["x"], data["target"]
    model.partial_fit(x, target, classes=np.arange(case.widths[-1]))  # makes the arrays that are overwritten now
    for index, (kernel, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        kernel[...], bias[...] = data[f"w{index}"], data[f"b{index}"]
    del model._optimizer  # it has made one step; the next call begins with a new one
    return train(model, x, target) if isinstance(case, Train) else predict(model, x)


def predict(model: Any, x: Any) -> Run:
    """`predict_proba`; results are its logarithms, shifted as the logits are."""
    results: Arrays = {}

    def call() -> None:
        results["p"] = model.predict_proba(x)

    return Run(call, lambda: {"logits": logits(model, x)})


def train(model: Any, x: Any, target: Any) -> Run:
    """One epoch of one batch."""
    return Run(
        lambda: model.partial_fit(x, target),
        lambda: {"loss": np.asarray(model.loss_), "logits": logits(model, x)},
    )


def logits(model: Any, x: Any) -> Any:
    """What the network puts into its softmax, of which scikit-learn shows only the result."""
    identity, model.out_activation_ = model.out_activation_, "identity"
    try:
        return model._forward_pass_fast(x)
    finally:
        model.out_activation_ = identity
