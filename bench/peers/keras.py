"""Keras on TensorFlow: its layers, loss and optimizer in one `tf.function`, without the bookkeeping of `fit`.

Its Adam adds epsilon before the bias correction, not after as the other peers do, which shows in the error.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")

import keras
import tensorflow as tf

from ..cases import Arrays, Case, Run
from ..networks import Network, weights
from ..questions.train import Train

VERSIONS = {"keras": keras.__version__, "tensorflow": tf.__version__}

ACTIVATIONS = {"linear", "relu", "gelu", "sigmoid", "tanh"}


def prepare(case: Case, data: Arrays) -> Run | None:
    """Prediction and training of networks."""
    if not isinstance(case, Network) or case.is_mixed or case.activation not in ACTIVATIONS:
        return None
    keras.backend.clear_session()
    *hidden, classes = case.widths[1:]
    model = keras.Sequential([keras.Input(case.widths[:1], dtype=case.dtype)])
    for units in hidden:
        model.add(keras.layers.Dense(units, activation=case.activation, dtype=case.dtype))
    model.add(keras.layers.Dense(classes, dtype=case.dtype))
    model.set_weights([data[name] for name in weights(data)])
    x, target = tf.constant(data["x"]), tf.constant(data["target"])
    if not isinstance(case, Train):
        return predict(model, x)
    if case.optimizer == "adam":
        return train(model, keras.optimizers.Adam(case.learning_rate, epsilon=1e-8), x, target)
    return train(model, keras.optimizers.SGD(case.learning_rate), x, target) if case.optimizer == "sgd" else None


def predict(model: Any, x: Any) -> Run:
    """The logits."""
    results: dict[str, Any] = {}
    logits = tf.function(lambda: model(x, training=False))

    def call() -> None:
        results["logits"] = logits()

    return Run(call, lambda: {"logits": results["logits"].numpy()})


def train(model: Any, optimizer: Any, x: Any, target: Any) -> Run:
    """Forward, loss, backward, update."""
    results: dict[str, Any] = {}
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer.build(model.trainable_variables)

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(target, model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    compiled = tf.function(step)

    def call() -> None:
        results["loss"] = compiled()

    return Run(call, lambda: {"loss": results["loss"].numpy(), "logits": model(x).numpy()})
