"""`Sequential` 3 -> 4 -> 5 -> 6 with sigmoids between: its repr, its parameters, its output."""

from __future__ import annotations

import numpy as np

import fcdense as fc

REPR = """\
Sequential(
  (0): Dense(3 -> 4)
  (1): Sigmoid()
  (2): Dense(4 -> 5)
  (3): Sigmoid()
  (4): Dense(5 -> 6)
  (5): Sigmoid()
)"""


def model(dtype: str = "float32") -> fc.nn.Sequential:
    layers: list[fc.nn.Module] = []
    for features, units in ((3, 4), (4, 5), (5, 6)):
        layers += [fc.nn.Dense(units, dtype=dtype, in_features=features), fc.nn.Sigmoid()]
    return fc.nn.Sequential(*layers)


def test_repr():
    assert repr(model()) == REPR


def test_parameters():
    assert [layer.num_parameters() for layer in model()[::2]] == [16, 25, 36]
    assert model().num_parameters() == 77


def test_output_is_the_formula(rng: np.random.Generator):
    made, x = model("float64"), rng.normal(size=(7, 3))
    expected = x
    for layer in made[::2]:
        expected = 1 / (1 + np.exp(-(expected @ layer.kernel.numpy() + layer.bias.numpy())))
    np.testing.assert_allclose(made(x).numpy(), expected, rtol=1e-12, atol=1e-13)


def test_activations_inside_of_the_layers_give_the_same(rng: np.random.Generator):
    made, x = model("float64"), rng.normal(size=(7, 3))
    fused = fc.nn.Sequential(*(fc.nn.Dense(units, "sigmoid", dtype="float64") for units in (4, 5, 6)))
    values = made.state_dict()
    fused.load_state_dict(
        {f"layers.{i}.{name}": values[f"layers.{2 * i}.{name}"] for i in range(3) for name in ("kernel", "bias")}
    )
    np.testing.assert_allclose(fused(x).numpy(), made(x).numpy(), rtol=1e-12, atol=1e-13)


def test_the_script(run_example):
    output = run_example("sequential.py")
    assert output.startswith(REPR)
    assert "output: (2, 6) all between 0 and 1: True" in output
    for line in ("3 -> 4: 3 * 4 + 4 = 16", "4 -> 5: 4 * 5 + 5 = 25", "5 -> 6: 5 * 6 + 6 = 36", "together: 77"):
        assert line in output
    assert "Parameters: 77 (77 trainable), 308 bytes" in output
