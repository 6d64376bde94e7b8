"""Modules: what registers, under which path, what is shared, modes, copies, and calls from inside other calls."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import fcdense as fc
from fcdense import constraints, nn, regularizers
from fcdense.errors import ArgumentError, DTypeError, GraphError, ShapeError
from fcdense.tensor import Tensor


class Residual(nn.Module):
    """x + second(first(x)), the layers in a list."""

    def __init__(self, units, dtype="float64"):
        super().__init__()
        self.layers = [nn.Dense(units, "tanh", dtype=dtype), nn.Dense(units, dtype=dtype)]

    def forward(self, x):
        return x + self.layers[1](self.layers[0](x))


class Everything(nn.Module):
    """One of each kind of attribute."""

    def __init__(self):
        super().__init__()
        self.gain = nn.parameter(np.ones(2, np.float32))
        self.first = nn.Dense(2, in_features=2)
        self.branches = {"left": nn.Dense(1, in_features=2), "right": [nn.Dense(1, in_features=2, use_bias=False)]}
        self.pair = (nn.ReLU(), nn.parameter(np.zeros(3, np.float32)))
        self.options = {"a": 1, 2: "b"}
        self.plain = fixed = np.arange(3.0)
        self.register_buffer("count", fixed)

    def forward(self, x):
        return self.first(x) * self.gain


class TiedAutoencoder(nn.Module):
    """Both halves use one kernel."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Dense(3, in_features=3, dtype="float64")
        self.decoder = nn.Dense(3, in_features=3, dtype="float64")
        self.decoder.kernel = self.encoder.kernel

    def forward(self, x):
        return self.decoder(self.encoder(x))


def paths(module):
    return [name for name, _ in module.named_parameters()]


def test_attributes_register_under_their_paths():
    model = Everything()
    assert paths(model) == [
        *("gain", "pair.1", "first.kernel", "first.bias"),
        *("branches.left.kernel", "branches.left.bias", "branches.right.0.kernel"),
    ]
    assert [name for name, _ in model.named_modules()] == [
        *("", "first", "branches.left", "branches.right.0", "pair.0"),
    ]
    assert [name for name, _ in model.named_children()] == ["first", "branches.left", "branches.right.0", "pair.0"]
    assert [name for name, _ in model.named_buffers()] == ["count"]
    assert len(list(model.children())) == 4
    assert len(list(model.modules())) == 5
    assert model.num_parameters() == 2 + 3 + 6 + 3 + 2


def test_parameters_know_their_path_in_the_model():
    model = Everything()
    list(model.parameters())
    kernel = model.branches["left"].kernel
    assert kernel.name == "branches.left.kernel"
    list(model.branches["left"].parameters())  # asking the layer alone does not shorten it
    assert kernel.name == "branches.left.kernel"
    outer = nn.Sequential(model)
    list(outer.parameters())
    assert kernel.name == "layers.0.branches.left.kernel"


def test_a_position_is_not_mistaken_for_the_end_of_another():
    layers = [nn.Dense(1, in_features=1) for _ in range(11)]
    model = nn.Sequential(layers)
    list(model.parameters())
    del model[:10]
    list(model.parameters())
    assert layers[10].kernel.name == "layers.0.kernel"


def test_what_is_appended_replaced_or_deleted_counts_from_then_on():
    model = Residual(2)
    model(np.zeros((1, 2)))
    assert len(paths(model)) == 4
    model.layers.append(nn.Dense(5, in_features=2))
    assert paths(model)[-2:] == ["layers.2.kernel", "layers.2.bias"]
    model.layers[1] = nn.ReLU()
    assert paths(model) == ["layers.0.kernel", "layers.0.bias", "layers.2.kernel", "layers.2.bias"]
    del model.layers[2]
    assert paths(model) == ["layers.0.kernel", "layers.0.bias"]
    model.extra = nn.Dense(1, in_features=2)
    assert len(paths(model)) == 4
    del model.extra
    assert len(paths(model)) == 2


def test_shared_layers_and_tied_parameters_are_listed_once():
    layer = nn.Dense(2, in_features=2)
    assert paths(nn.Sequential(layer, nn.ReLU(), layer)) == ["layers.0.kernel", "layers.0.bias"]
    tied = TiedAutoencoder()
    assert paths(tied) == ["encoder.kernel", "encoder.bias", "decoder.bias"]
    assert tied.num_parameters() == 9 + 3 + 3


def test_a_module_that_knows_its_parent_is_no_endless_loop():
    parent, child = nn.Sequential(nn.ReLU()), Residual(2)
    child.parent = parent
    parent.append(child)
    assert [name for name, _ in parent.named_modules()] == [
        "",
        "layers.0",
        "layers.1",
        "layers.1.layers.0",
        "layers.1.layers.1",
    ]
    assert "..." in repr(parent)
    assert not any(module.training for module in parent.eval().modules())


class FrozenBatchNorm(nn.BatchNorm):
    """In evaluation mode for ever, as many write it."""

    def train(self, mode=True):
        return super().train(False)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def train(self, mode=True):
        super().train(mode)
        self.drop.train()
        return self

    def forward(self, x):
        return self.drop(x)


def test_a_layer_may_decide_on_its_mode():
    model = nn.Sequential(nn.Dense(3, in_features=2), FrozenBatchNorm(in_features=3), Block(), nn.Dropout(0.1))
    assert [module.training for module in model.train().modules()] == [True, True, False, True, True, True]
    assert [module.training for module in model.eval().modules()] == [False, False, False, False, True, False]
    before = model.state_dict()
    fc.Trainer(model, "mean_squared_error").fit(np.ones((8, 2), "f"), np.ones((8, 3), "f"), epochs=2, verbose=False)
    after = model.state_dict()
    np.testing.assert_array_equal(after["layers.1.running_mean"], before["layers.1.running_mean"])
    assert not np.array_equal(after["layers.0.kernel"], before["layers.0.kernel"])


def test_forgotten_super_init_is_named():
    class Forgetful(nn.Module):
        def __init__(self):
            self.layer = nn.Dense(2)

    class ForgetfulList(nn.Module):
        def __init__(self):
            self.layers = [nn.parameter([1.0])]

    class ForgetfulBuffer(nn.Module):
        def __init__(self):
            self.register_buffer("mean", np.zeros(2))

    for kind in (Forgetful, ForgetfulList, ForgetfulBuffer):
        with pytest.raises(ArgumentError, match=r"super\(\).__init__\(\) first"):
            kind()


def test_without_parameters_no_super_init_is_needed():
    class Double(nn.Module):
        def __init__(self, factor):
            self.factor = factor

        def forward(self, x):
            return x * self.factor

    model = nn.Sequential(Double(2.0)).eval()
    assert model(np.ones(3)).numpy().tolist() == [2.0, 2.0, 2.0]
    assert model.state_dict() == {}
    assert model.training is False


@pytest.mark.parametrize("key", ["a.b", 3, ""])
def test_keys_that_make_no_path_are_refused(key):
    model = nn.Sequential()
    with pytest.raises(ArgumentError, match="key must be"):
        model.table = {key: nn.ReLU()}
    model.table = {"good": nn.ReLU(), "other": {key: 1}}
    model.table[key] = nn.ReLU()
    with pytest.raises(ArgumentError, match="key must be"):
        list(model.named_modules())


def test_missing_forward():
    class Empty(nn.Module):
        pass

    with pytest.raises(ArgumentError, match=r"Empty has no forward\(\)"):
        Empty()(1)


# gradients, modes, penalty


def test_residual_sum(check_gradients, rng):
    model = Residual(3)
    x = rng.standard_normal((4, 3))
    check_gradients(model, x)
    first, second = model.layers
    hidden = np.tanh(x @ first.kernel.numpy() + first.bias.numpy())
    expected = x + hidden @ second.kernel.numpy() + second.bias.numpy()
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-12, atol=1e-14)


def test_tied_parameters(check_gradients, rng):
    check_gradients(TiedAutoencoder(), rng.standard_normal((4, 3)))


def test_shared_layer(check_gradients, rng):
    layer = nn.Dense(3, "sigmoid", in_features=3, dtype="float64")
    check_gradients(nn.Sequential(layer, layer, nn.Tanh(), layer), rng.standard_normal((4, 3)))


def test_train_and_eval_reach_everything():
    model = Everything()
    assert model.training
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())


def test_freeze(rng):
    model = Residual(3)
    model.layers[0].freeze()  # before it is built
    model(rng.standard_normal((4, 3))).sum().backward()
    assert [p.has_grad for p in model.parameters()] == [False, False, True, True]
    assert model.num_parameters() == 24
    assert model.num_parameters(trainable_only=True) == 12
    model.zero_grad()
    assert not any(p.has_grad for p in model.parameters())
    assert model.unfreeze() is model
    model(rng.standard_normal((4, 3))).sum().backward()
    assert all(p.has_grad for p in model.parameters())


def test_unfreeze_before_building():
    layer = nn.Dense(2).freeze().unfreeze()
    layer(np.ones((1, 2), np.float32)).sum().backward()
    assert layer.kernel.has_grad


def test_num_parameters_needs_shapes():
    with pytest.raises(GraphError, match="no shape yet"):
        nn.Dense(2).num_parameters()


def test_penalty_is_the_sum_over_distinct_parameters():
    assert Residual(2).penalty() is None
    layer = nn.Dense(2, in_features=2, kernel_regularizer=regularizers.l2(0.5), bias_regularizer="l1", dtype="float64")
    layer.bias.assign(np.array([1.0, -3.0]))
    model = nn.Sequential(layer, layer)
    penalty = model.penalty()
    expected = 0.5 * (layer.kernel.numpy() ** 2).sum() + 0.01 * 4.0
    assert penalty.shape == ()
    assert penalty.item() == pytest.approx(expected, rel=1e-14)
    penalty.backward()
    np.testing.assert_allclose(layer.kernel.grad.numpy(), layer.kernel.numpy(), rtol=1e-15)
    np.testing.assert_allclose(layer.bias.grad.numpy(), [0.01, -0.01], rtol=1e-15)


@pytest.mark.parametrize("regularizer", [lambda w: w * 2.0, lambda w: 0.5])
def test_a_penalty_must_be_a_scalar_tensor(regularizer):
    model = nn.Sequential(nn.Dense(2, in_features=2, kernel_regularizer=regularizer))
    with pytest.raises(ShapeError, match=r"layers\.0\.kernel"):
        model.penalty()


# buffers and parameters of one's own


def test_buffers():
    model = Everything()
    assert isinstance(model.count, Tensor)
    assert not model.count.requires_grad
    model.count = np.array([7.0, 8.0, 9.0])  # stays one
    assert dict(model.named_buffers())["count"].numpy().tolist() == [7.0, 8.0, 9.0]
    assert "count" not in dict(model.named_parameters())
    for name in ("count", "first", "not a name", 3):
        with pytest.raises(ArgumentError, match="Buffer"):
            model.register_buffer(name, np.zeros(2))
    del model.count
    assert dict(model.named_buffers()) == {}


def test_parameter_of_ones_own():
    assert nn.parameter([1.0, 2.0], "float32", decay=True).decay
    source = np.ones(3)
    made = nn.parameter(source)
    source[0] = 5.0
    assert made.numpy().tolist() == [1.0, 1.0, 1.0]
    assert made.requires_grad
    with pytest.raises(DTypeError):
        nn.parameter([1, 2])
    for constraint in ("non_neg", constraints.non_neg, constraints.non_neg()):
        made = nn.parameter([-1.0, 1.0], regularizer="l2", constraint=constraint)
        assert made.regularizer(made).item() == 0.01 * 2.0
        assert made.constraint(made.numpy()).tolist() == [0.0, 1.0]
    for wrong in ({"constraint": "none_neg"}, {"regularizer": 0.1}, {"constraint": constraints.max_norm}):
        with pytest.raises(ArgumentError):
            nn.parameter([1.0], **wrong)


# messages


def test_labels_are_paths_from_the_model_that_was_called():
    inner = nn.Sequential(nn.Dense(3, in_features=4))
    outer = nn.Sequential(nn.ReLU(), inner)
    x = np.zeros((2, 5), np.float32)
    with pytest.raises(ShapeError, match=r"^Dense 'layers.1.layers.0': x has 5 features, its kernel expects 4"):
        outer(x)
    with pytest.raises(ShapeError, match=r"^Dense 'layers.0': "):
        inner(x)
    with pytest.raises(ShapeError, match=r"^Dense: x has 5 features"):
        inner[0](x)
    assert outer(np.zeros((2, 4), np.float32)).shape == (2, 3)  # a failed call leaves nothing behind


def test_labels_in_threads_do_not_mix():
    messages = {}

    def run(name, depth):
        model = nn.Dense(3, in_features=4)
        for _ in range(depth):
            model = nn.Sequential(model)
        for _ in range(50):
            try:
                model(np.zeros((2, 5), np.float32))
            except ShapeError as error:
                messages.setdefault(name, set()).add(str(error).partition(":")[0])

    threads = [threading.Thread(target=run, args=(depth, depth)) for depth in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert messages == {
        depth: {f"Dense '{'.'.join(['layers.0'] * depth)}'" if depth else "Dense"} for depth in range(4)
    }


def test_repr():
    model = nn.Sequential(Residual(2), nn.Dense(4, in_features=3, activation="sigmoid"), nn.Dropout(0.1))
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Residual(\n"
        "    (layers.0): Dense(? -> 2, activation=tanh, dtype=float64)\n"
        "    (layers.1): Dense(? -> 2, dtype=float64)\n"
        "  )\n"
        "  (1): Dense(3 -> 4, activation=sigmoid)\n"
        "  (2): Dropout(rate=0.1)\n"
        ")"
    )


def test_a_leaf_that_is_no_parameter_is_refused():
    module = nn.Module()
    with pytest.raises(ArgumentError, match=r"Module.scale is a tensor that requires a gradient, .*fc.nn.parameter"):
        module.scale = Tensor(np.ones(2), module_device(), requires_grad=True)
    module.scale = nn.parameter(np.ones(2))
    assert [path for path, _ in module.named_parameters()] == ["scale"]


def module_device():
    return nn.device_of(nn.Module())
