"""What becomes a tensor, in which dtype, and what is refused with a sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcdense as fc
from fcdense import conversion
from fcdense.conversion import array_dtype, float_dtype, host_array
from fcdense.errors import DeviceError, DTypeError, DTypeWarning, ShapeError
from fcdense.tensor import Tensor, tensor

DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_kept(dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]], dtype)
    x = tensor(array)
    assert x.dtype == array.dtype
    np.testing.assert_array_equal(x.numpy(), array)
    assert not np.shares_memory(x.numpy(), array)
    assert x.array.flags.c_contiguous
    assert x.array.flags.writeable


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in {"i1", "u1", "?"}])
def test_foreign_byte_order_is_converted_never_reinterpreted(dtype: str) -> None:
    array = np.array([1, 2, 300], dtype).astype(np.dtype(dtype).newbyteorder(">"))
    x = tensor(array)
    assert x.dtype == np.dtype(dtype)
    assert x.dtype.isnative
    np.testing.assert_array_equal(x.numpy(), [1, 2, 300])
    assert tensor([1.5], dtype=">f4").dtype.isnative


@pytest.mark.parametrize(
    ("data", "dtype", "shape"),
    [
        (1.5, "f8", ()),
        (3, "i8", ()),
        (True, "?", ()),
        ([1.0, 2.0], "f8", (2,)),
        ([1, 2.5], "f8", (2,)),
        ([[1, 2], [3, 4]], "i8", (2, 2)),
        (((1.0,), (2.0,)), "f8", (2, 1)),
        ([], "f8", (0,)),
        ([[], []], "f8", (2, 0)),
        (range(3), "i8", (3,)),
        (np.float32(2.0), "f4", ()),
        ([np.float32(1), np.float32(2)], "f4", (2,)),
        ([np.ones(2), np.zeros(2)], "f8", (2, 2)),
    ],
)
def test_python_data(data: Any, dtype: str, shape: tuple[int, ...]) -> None:
    x = tensor(data)
    assert (x.dtype, x.shape) == (np.dtype(dtype), shape)
    np.testing.assert_array_equal(x.numpy(), np.array(data))


def test_memory_of_every_kind_is_copied(tmp_path: Path) -> None:
    base = np.arange(24.0).reshape(4, 6)
    read_only = base.copy()
    read_only.flags.writeable = False
    stored = np.memmap(tmp_path / "data", dtype=np.float64, mode="w+", shape=(4, 6))
    stored[:] = base
    for array in (
        base.T,
        base[::-1, ::-2],
        base[1:3, 2:5],
        np.asfortranarray(base),
        read_only,
        stored,
        np.broadcast_to(1.5, (3, 4)),
    ):
        x = tensor(array)
        np.testing.assert_array_equal(x.numpy(), np.array(array))
        assert type(x.array) is np.ndarray
        assert not np.shares_memory(x.array, array)
        x[...] = 0.0
        assert x.array.flags.c_contiguous
    np.testing.assert_array_equal(stored, base)


def test_tensors_are_copied_without_their_history() -> None:
    x = tensor([1.0, 2.0], requires_grad=True)
    for source in (x, x * 1.0):
        y = tensor(source)
        assert not y.requires_grad
        assert not np.shares_memory(y.numpy(), source.numpy())
        np.testing.assert_array_equal(y.numpy(), [1.0, 2.0])
    assert tensor(x, dtype="float32", requires_grad=True).dtype == np.float32
    assert tensor(tensor([1.0], device="reference")).device.name == "cpu"


def test_a_dtype_that_is_asked_for() -> None:
    assert tensor([1, 2], dtype="float32").dtype == np.float32
    assert tensor([1.9], dtype=int).item() == 1
    assert tensor([0.0, 2.0], dtype=bool).numpy().tolist() == [False, True]
    for dtype in (complex, "c8", object, "U4", "M8[s]", np.longdouble, "float99", "V4"):
        with pytest.raises(DTypeError, match="expected a float dtype up to float64, an integer dtype or bool"):
            tensor([1.0], dtype=dtype)


REFUSED: list[tuple[Any, type[Exception], str]] = [
    ([[1.0, 2.0], [3.0]], ShapeError, "ragged list: its rows have unequal lengths"),
    ([np.ones(2), np.ones(3)], ShapeError, "ragged"),
    (np.array([1 + 2j]), DTypeError, "complex"),
    (1j, DTypeError, "complex"),
    (np.array(["1.5"]), DTypeError, "dtype <U3; expected floats, integers or booleans"),
    (["a", "b"], DTypeError, "expected floats"),
    ("text", DTypeError, "expected floats"),
    (b"bytes", DTypeError, "expected floats"),
    (None, DTypeError, "dtype object"),
    ([1.0, None], DTypeError, "dtype object"),
    ({"a": 1}, DTypeError, "dtype object"),
    (np.array([1.0, "x"], dtype=object), DTypeError, "dtype object"),
    (np.array(["2024-01-01"], "M8[D]"), DTypeError, "datetime64"),
    (np.zeros(2, [("a", "f4"), ("b", "f4")]), DTypeError, "expected floats"),
    (np.ma.masked_array([1.0, 2.0], [True, False]), DTypeError, "masked"),
]


@pytest.mark.parametrize(("data", "error", "message"), REFUSED, ids=lambda v: repr(v)[:24])
def test_what_is_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tensor(data)


def test_other_errors_of_numpy_pass_through() -> None:
    class Broken:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise ValueError("the disk is on fire")

    with pytest.raises(ValueError, match="on fire"):
        tensor(Broken())


class OnGpu:
    """As CuPy's arrays show themselves."""

    shape = (2,)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (2,), "typestr": "<f4", "data": (1, False), "version": 3}

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("implicit conversion")


def test_arrays_of_a_gpu_are_not_copied_behind_your_back() -> None:
    for call in (lambda: tensor(OnGpu()), lambda: tensor([1.0, 2.0]) + OnGpu(), lambda: tensor([1.0]) > OnGpu()):
        with pytest.raises(DeviceError, match=r"lies on a GPU.*cupy\.asnumpy"):
            call()


@pytest.mark.parametrize(
    "use",
    [
        lambda a: tensor([a, a]),
        lambda a: tensor([[1.0], (a,)]),
        lambda a: tensor([1.0, 2.0])[a],
        lambda a: tensor([1.0, 2.0])[[a]],
        lambda a: fc.nn.Dense(2, in_features=2)([a, a]),
        lambda a: fc.nn.Dense(2, in_features=2, kernel_initializer=lambda *_: a)(np.ones((1, 2))),
        lambda a: fc.data.Batches([a, a]),
        lambda a: fc.losses.cross_entropy(tensor(np.eye(2)), [a, a]),
        lambda a: fc.losses.cross_entropy(tensor(np.eye(2)), [0, 1], class_weight={0: a}),
        lambda a: fc.losses.mse(tensor(np.eye(2)), [a, a]),
        lambda a: fc.metrics.Accuracy().update(np.eye(2), a),
        lambda a: fc.metrics.Accuracy().update([a, a], [0, 1]),
        lambda a: fc.metrics.R2Score().update([0.0, 1.0], [1.0, 1.0], a),
        lambda a: fc.metrics.get(lambda p, t: a).update(np.eye(2), np.eye(2)),
    ],
)
def test_what_is_read_on_the_host_names_arrays_of_a_gpu(use: Any) -> None:
    with pytest.raises(DeviceError, match=r"(lies|holds arrays that lie) on a GPU.*cupy\.asnumpy"):
        use(OnGpu())


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is float64 here")
def test_long_double_is_rounded_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_said", set())
    data = np.array([1.0, 2.0], np.longdouble) / 3
    with pytest.warns(DTypeWarning, match="rounded to float64"):
        x = tensor(data)
    np.testing.assert_array_equal(x.numpy(), data.astype(np.float64))
    assert x.dtype == np.float64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor(data)


def test_torch_tensors_are_data_like_any_other() -> None:
    torch = pytest.importorskip("torch")
    x = tensor(torch.arange(6, dtype=torch.float32).reshape(2, 3).T)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.numpy(), [[0, 3], [1, 4], [2, 5]])


def test_host_arrays_are_not_copied_without_need() -> None:
    array = np.ones(3, np.float32)
    assert host_array(array) is array
    with pytest.raises(DTypeError, match=r"^the target is complex"):
        host_array(1j, "the target")


@pytest.mark.parametrize("name", ["float16", "float32", "float64", np.float32, np.dtype("f8"), "f4", float])
def test_float_dtypes(name: Any) -> None:
    assert float_dtype(name) == np.dtype(name)
    assert array_dtype(name) == np.dtype(name)


@pytest.mark.parametrize("name", ["int32", bool, "complex64", "float128", "bfloat16", "nonsense", None, object, 3])
def test_dtypes_that_are_not_float(name: Any) -> None:
    with pytest.raises(DTypeError, match="expected 'float16', 'float32' or 'float64'"):
        float_dtype(name)


def test_a_tensor_is_what_comes_out() -> None:
    assert type(tensor(1.0)) is Tensor
