"""Initializers: moments, bounds and orthogonality against closed forms; the table; the errors."""

from __future__ import annotations

import json
import math
import pickle
import tracemalloc
from functools import partial

import numpy as np
import pytest

from fcdense import init
from fcdense.errors import ArgumentError, DTypeError, FormatError, ShapeError, UnknownNameError

SHAPE = (300, 500)
ENTRIES = SHAPE[0] * SHAPE[1]
FAN_IN, FAN_OUT = SHAPE

# name: the variance that its source states for a kernel (in, out)
VARIANCE = {
    "glorot_uniform": 2 / (FAN_IN + FAN_OUT),
    "glorot_normal": 2 / (FAN_IN + FAN_OUT),
    "he_uniform": 2 / FAN_IN,
    "he_normal": 2 / FAN_IN,
    "lecun_uniform": 1 / FAN_IN,
    "lecun_normal": 1 / FAN_IN,
}
EVERY_NAME = sorted(init.TABLE)
NAMES = [name for name in EVERY_NAME if name != "constant"]
RANDOM = [name for name in NAMES if name not in ("zeros", "ones")]


def draw(spec, shape=SHAPE, dtype=np.float64, seed=0):
    return init.get(spec)(shape, dtype, np.random.default_rng(seed))


def assert_moments(values, variance, kurtosis, mean=0.0):
    """Mean and variance within five standard errors of the closed form (kurtosis: the fourth standardised moment)."""
    assert abs(values.mean() - mean) < 5 * math.sqrt(variance / values.size)
    assert abs(values.var() / variance - 1) < 5 * math.sqrt((kurtosis - 1) / values.size)


def truncated_moments():
    """Variance and kurtosis of a standard normal cut at +-2, by quadrature."""
    z = np.linspace(-2, 2, 400_001)
    density = np.exp(-(z**2) / 2)
    second = (z**2 * density).sum() / density.sum()
    return second, (z**4 * density).sum() / density.sum() / second**2


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", VARIANCE)
def test_variance_and_bound(name, seed):
    values, variance = draw(name, seed=seed), VARIANCE[name]
    if name.endswith("uniform"):
        bound, kurtosis = math.sqrt(3 * variance), 1.8
    else:
        second, kurtosis = truncated_moments()
        bound = 2 * math.sqrt(variance / second)
    assert_moments(values, variance, kurtosis)
    assert 0.999 * bound < np.abs(values).max() <= bound


@pytest.mark.parametrize("name", VARIANCE)
def test_gain_scales_the_same_draw(name):
    np.testing.assert_allclose(draw(init.TABLE[name](gain=1.7)), 1.7 * draw(name), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "other"),
    [("glorot_uniform", "xavier_uniform_"), ("he_uniform", "kaiming_uniform_")],
)
def test_bound_is_that_of_torch(name, other):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    weight = torch.empty(FAN_OUT, FAN_IN, dtype=torch.float64)  # PyTorch keeps (out, in)
    options = {"nonlinearity": "relu"} if name == "he_uniform" else {}
    getattr(torch.nn.init, other)(weight, **options)
    assert np.abs(draw(name)).max() == pytest.approx(weight.abs().max().item(), rel=1e-3)


def test_truncated_constant():
    mpmath = pytest.importorskip("mpmath")
    variance = mpmath.quad(lambda z: z**2 * mpmath.npdf(z), [-2, 2]) / mpmath.quad(mpmath.npdf, [-2, 2])
    kept = init.TRUNCATED_STDDEV
    assert kept == pytest.approx(float(mpmath.sqrt(variance)), rel=1e-15)
    assert kept == pytest.approx(0.87962566103423978, rel=1e-15)


@pytest.mark.parametrize("seed", [0, 1])
def test_truncated_normal(seed):
    values = draw(init.truncated_normal(stddev=0.3, mean=1.5), seed=seed)
    second, kurtosis = truncated_moments()
    assert_moments(values, 0.09 * second, kurtosis, mean=1.5)
    assert 0.599 < np.abs(values - 1.5).max() <= 0.6
    # The tails come back inside as the normal itself, not heaped at the bound: the share beyond 1.9 deviations.
    share = (math.erf(2 / math.sqrt(2)) - math.erf(1.9 / math.sqrt(2))) / math.erf(2 / math.sqrt(2))
    assert (np.abs(values - 1.5) > 0.57).mean() == pytest.approx(share, abs=5 * math.sqrt(share / ENTRIES))


def test_normal_and_uniform():
    assert_moments(draw(init.normal(stddev=0.2, mean=-1.0)), 0.04, 3.0, mean=-1.0)
    values = draw(init.uniform(low=-1.0, high=3.0))
    assert_moments(values, 16 / 12, 1.8, mean=1.0)
    assert values.min() >= -1.0
    assert values.max() < 3.0


def test_constants():
    assert np.array_equal(draw("zeros"), np.zeros(SHAPE))
    assert np.array_equal(draw("ones"), np.ones(SHAPE))
    assert np.array_equal(draw(0.25), np.full(SHAPE, 0.25))
    assert draw(init.constant(2.0), shape=()).shape == ()


@pytest.mark.parametrize("shape", [(64, 64), (200, 30), (30, 200), (1, 7), (7, 1)])
@pytest.mark.parametrize("gain", [1.0, 1.4])
def test_orthogonal(shape, gain):
    w = draw(init.orthogonal(gain=gain), shape=shape)
    small = w.T @ w if shape[0] >= shape[1] else w @ w.T
    np.testing.assert_allclose(small, gain**2 * np.eye(min(shape)), atol=1e-13)
    w32 = draw(init.orthogonal(gain=gain), shape=shape, dtype=np.float32).astype(np.float64)
    small = w32.T @ w32 if shape[0] >= shape[1] else w32 @ w32.T
    np.testing.assert_allclose(small, gain**2 * np.eye(min(shape)), atol=1e-6)


def test_orthogonal_is_uniformly_distributed():
    """In two dimensions the first entry is cos of a uniform angle and half of the matrices are reflections."""
    matrices = np.array([draw("orthogonal", shape=(2, 2), seed=seed) for seed in range(2000)])
    assert_moments(matrices[:, 0, 0], 0.5, 1.5)
    assert abs(np.linalg.det(matrices).mean()) < 5 / math.sqrt(2000)


@pytest.mark.parametrize("name", RANDOM)
def test_same_seed_same_bits(name):
    first, again, other = draw(name, seed=3), draw(name, seed=3), draw(name, seed=4)
    assert first.tobytes() == again.tobytes()
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_one_draw_for_every_dtype(name, dtype):
    narrow = draw(name, dtype=dtype)
    assert narrow.dtype == np.dtype(dtype)
    assert np.array_equal(narrow, draw(name).astype(dtype))


@pytest.mark.parametrize("name", NAMES)
def test_result_is_a_new_contiguous_array(name):
    values = draw(name, shape=(5, 9), dtype=np.float32)
    assert values.flags.c_contiguous
    assert values.flags.owndata
    assert values.flags.writeable


def test_fans():
    assert init.fans((3, 5)) == (3, 5)
    assert init.fans((7,)) == (7, 7)
    for shape in [(), (2, 3, 4)]:
        with pytest.raises(ShapeError, match="kernel"):
            init.fans(shape)
    assert np.abs(draw("glorot_uniform", shape=(100_000,))).max() == pytest.approx(math.sqrt(3 / 100_000), rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_names_classes_and_instances_mean_the_same(name):
    expected = draw(name)
    assert np.array_equal(draw(init.TABLE[name]), expected)
    assert np.array_equal(draw(init.TABLE[name]()), expected)
    assert getattr(init, name) is init.TABLE[name]


@pytest.mark.parametrize("initializer", [init.constant(0.5), *(init.TABLE[name]() for name in NAMES)], ids=repr)
def test_data_pickle_and_repr_round_trip(initializer):
    assert init.from_data(json.loads(json.dumps(initializer.to_data()))) == initializer
    assert pickle.loads(pickle.dumps(initializer)) == initializer
    assert eval(repr(initializer), vars(init).copy()) == initializer


def test_repr_and_data_name_the_parameters():
    assert repr(init.get(init.orthogonal(gain=1.4))) == "orthogonal(gain=1.4)"
    assert init.orthogonal(gain=2).to_data() == {"name": "orthogonal", "gain": 2.0}
    assert init.orthogonal(gain=1.4) != init.orthogonal()
    assert init.zeros() != init.ones()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"name": "orthogonl", "gain": 1.0}, UnknownNameError),
        ({"name": "custom", "fn": "os.system"}, UnknownNameError),
        ({"name": "orthogonal"}, FormatError),
        ({"name": "orthogonal", "gain": 1.0, "axis": 0}, FormatError),
        ({"gain": 1.0}, FormatError),
        ({"name": ["orthogonal"]}, FormatError),
        ("orthogonal", FormatError),
        ({"name": "orthogonal", "gain": "1"}, ArgumentError),
        ({"name": "orthogonal", "gain": math.nan}, ArgumentError),
    ],
)
def test_bad_data(data, error):
    with pytest.raises(error):
        init.from_data(data)


def siren(shape, dtype, generator):
    bound = math.sqrt(6 / shape[0]) / 30
    return generator.uniform(-bound, bound, shape).astype(dtype)


def test_function():
    initializer = init.get(siren)
    assert repr(initializer) == "custom(siren)"
    values = draw(siren, dtype=np.float32)
    assert values.dtype == np.float32
    assert np.array_equal(values, siren(SHAPE, np.float32, np.random.default_rng(0)))
    with pytest.raises(ArgumentError, match=r"custom\(siren\).*cannot be saved"):
        initializer.to_data()


def test_function_result_is_copied():
    kept = np.zeros((2, 3), np.float32)
    values = draw(lambda shape, dtype, generator: kept, shape=(2, 3), dtype=np.float32)
    assert not np.shares_memory(values, kept)
    spread = draw(lambda shape, dtype, generator: np.broadcast_to(np.float32(1), shape), shape=(2, 3))
    assert spread.flags.writeable


@pytest.mark.parametrize(
    ("fn", "error", "words"),
    [
        (lambda s, d, g: np.zeros((3, 2)), ShapeError, r"\(3, 2\), expected \(2, 3\)"),
        (lambda s, d, g: 1.0, ShapeError, r"\(\), expected \(2, 3\)"),
        (lambda s, d, g: np.full(s, np.nan), ArgumentError, "NaN or infinite"),
        (lambda s, d, g: np.full(s, 1e39), ArgumentError, "infinite entries in float32"),
        (lambda s, d, g: np.full(s, 1j), DTypeError, "complex128"),
        (lambda s, d, g: None, DTypeError, "object"),
    ],
)
def test_function_with_a_bad_result(fn, error, words):
    with pytest.raises(error, match=words):
        draw(fn, shape=(2, 3), dtype=np.float32)


@pytest.mark.parametrize("fn", [lambda: 0, lambda shape: 0, lambda shape, dtype: 0, int])
def test_function_with_another_signature(fn):
    with pytest.raises(ArgumentError, match=r"function of \(shape, dtype, generator\)"):
        init.get(fn)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (partial(init.constant, math.nan), "value is nan"),
        (partial(init.constant, True), "value is True"),
        (partial(init.constant, "1"), "value is '1'"),
        (partial(init.normal, stddev=-0.1), "stddev is -0.1"),
        (partial(init.truncated_normal, stddev=math.inf), "stddev is inf"),
        (partial(init.he_normal, gain=-1), "gain is -1"),
        (partial(init.orthogonal, gain=None), "gain is None"),
        (partial(init.uniform, low=1, high=0), "low is 1.0 and high is 0.0"),
        (partial(init.uniform, low=-1.7e308, high=1.7e308), "low <= high"),
        (partial(init.get, math.inf), "value is inf"),
        (partial(init.get, True), "True"),
        (partial(init.get, None), "None"),
        (partial(init.get, "constant"), r"fc.init.constant\("),
        (partial(init.get, init.constant), r"fc.init.constant\("),
    ],
)
def test_bad_parameters(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()


def test_unknown_name_lists_near_matches():
    with pytest.raises(UnknownNameError, match="glorot_uniform"):
        init.get("glorot_unifrom")


@pytest.mark.parametrize("name", NAMES)
def test_bad_calls(name):
    initializer, generator = init.get(name), np.random.default_rng(0)
    for shape in [(0, 3), (-1, 3), (2.5, 3), 3, None]:
        with pytest.raises(ShapeError, match="positive integers"):
            initializer(shape, np.float32, generator)
    for dtype in [np.int64, bool, complex, object]:
        with pytest.raises(DTypeError, match="float32"):
            initializer((2, 3), dtype, generator)
    for other in [0, None, np.random.RandomState(0)]:
        with pytest.raises(ArgumentError, match="default_rng"):
            initializer((2, 3), np.float32, other)


def test_value_beyond_the_dtype():
    with pytest.raises(ArgumentError, match=r"constant\(value=1e\+300\).*float32"):
        draw(1e300, dtype=np.float32)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "orthogonal"])
def test_large_kernels_are_drawn_in_blocks(name):
    """The numbers are those of one draw of the whole; no float64 copy of it is made."""
    shape = (1400, 1200)
    blocked = draw(name, shape, np.float32)
    tracemalloc.start()
    try:
        draw(name, shape, np.float32)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < blocked.nbytes + 6 * init.BLOCK * 8 < 2 * blocked.nbytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(init, "BLOCK", blocked.size)
        np.testing.assert_array_equal(draw(name, shape, np.float32), blocked)


def test_truncated_normal_is_drawn_whole_and_then_again_beyond_the_cut():
    generator = np.random.default_rng(3)
    expected = generator.standard_normal((700, 600))
    while (outside := np.abs(expected) > 2.0).any():
        expected[outside] = generator.standard_normal(np.count_nonzero(outside))
    drawn = init.truncated_normal(stddev=1.0)((700, 600), np.float64, np.random.default_rng(3))
    np.testing.assert_array_equal(drawn, expected)


def test_orthogonal_needs_a_matrix():
    for shape in [(4,), (2, 3, 4)]:
        with pytest.raises(ShapeError, match=r"orthogonal\(gain=1.0\)"):
            draw("orthogonal", shape=shape)
