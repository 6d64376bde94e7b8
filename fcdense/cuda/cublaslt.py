"""Matrix products by cuBLASLt, through its C interface (CUDA Toolkit Documentation, cuBLAS).

A product that was seen before takes one call of the library, and one more for each address that its descriptor holds:
descriptors and algorithm are kept. The first time, `CublasLt` makes four descriptors and asks for algorithms, some tens
of microseconds on the host, and the library may load the code of kernels. Nothing waits for the device, and no memory
is allocated on it but for that code. So a product may be captured once its `refusal` was asked for; to ask during the
capture breaks it in cuBLAS 13.5 and 13.6 (release notes of CUDA 13.4).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from ctypes import byref, c_int, c_size_t, c_void_p, sizeof
from dataclasses import dataclass
from typing import Any, NamedTuple

from fcdense.cuda import cublaslt_types as lt
from fcdense.cuda.cublaslt_types import Attribute, Code, Epilogue, Found, Operand, Product, alignment_of, name_of
from fcdense.cuda.library import library_path
from fcdense.errors import DeviceError
from fcdense.log import logger

CANDIDATES = 8
"""How many algorithms are asked for when one is needed."""
PLANS = 4096
"""How many products are remembered."""


class Algorithm(NamedTuple):
    """One of the library's ways to compute a product: bytes that this version of it understands."""

    code: bytes
    workspace: int


def workspace_size(architecture: str) -> int:
    """Bytes of workspace that cuBLAS recommends for "sm_90a" and the like (its documentation, cublasSetWorkspace)."""
    return (32 if int("".join(filter(str.isdigit, architecture))) >= 90 else 4) << 20


def refusal(product: Product) -> str:
    """Why a product cannot be put to the library, whatever the GPU; "" if it can."""
    return next(_refusals(product), "")


def _refusals(product: Product) -> Iterator[str]:
    a, b, out, epilogue = product.a, product.b, product.out, product.epilogue
    dtype, depth = name_of(a.dtype), a.columns
    if (a.rows, depth, b.columns) != (out.rows, b.rows, out.columns):
        yield "the shapes do not fit each other"
    if not a.rows * depth * b.columns:
        yield "there is nothing to multiply"
    outs = {dtype, "float32"} if dtype in ("float16", "bfloat16") else {dtype}
    if dtype not in lt.CUDA_TYPES or name_of(b.dtype) != dtype or name_of(out.dtype) not in outs:
        yield "there are no products of these dtypes"
    if product.tf32 and dtype != "float32":
        yield "TF32 is for float32"
    (a_transposed, a_step), (b_transposed, b_step), (out_transposed, out_step) = (x.leading() for x in (a, b, out))
    if not a_step or not b_step:
        yield f"{'b' if a_step else 'a'} lies neither row by row nor column by column"
    if out_transposed or not out_step:
        yield "out does not lie row by row"
    # Rows that are 2^31 bytes apart gave wrong sums until CUDA 13.2 (its release notes).
    if 8 * max(a_step, b_step, out_step, depth) >= 1 << 31:
        yield "its sizes or strides are too large"
    yield from _refused_companions(product)
    if epilogue.is_gradient and depth == 1:
        yield "the library has no gradients at depth 1"
    # BGRADA wants its A as it lies, BGRADB its B transposed (nvmath-python, tests of the epilogues).
    if epilogue == Epilogue.COLUMN_SUMS_OF_B and b_transposed:
        yield "b does not lie row by row"
    if epilogue == Epilogue.ROW_SUMS_OF_A and not a_transposed:
        yield "a does not lie column by column"
    # Up to CUDA 11.8 some numbers of such a column lacked their bias (github.com/dfyz/cublaslt-bias-epilogue); no
    # release notes speak of it since.
    if epilogue.has_bias and out.columns == 1 < out_step:
        yield "out is one column with gaps, to which the library may not add a bias"


def _refused_companions(product: Product) -> Iterator[str]:
    out, epilogue, bias, aux = product.out, product.epilogue, product.bias, product.aux
    if (bias is not None, aux is not None) != (epilogue.has_bias, epilogue.has_aux):
        needs = [name for name, is_there in (("bias", epilogue.has_bias), ("aux", epilogue.has_aux)) if is_there]
        yield f"{epilogue.name} comes with {' and '.join(needs) or 'neither bias nor aux'}"
    length, dtype = out.rows if epilogue == Epilogue.ROW_SUMS_OF_A else out.columns, name_of(out.dtype)
    if bias and (bias[1:3] != (1, length) or bias.leading() != (False, length) or name_of(bias.dtype) != dtype):
        yield f"bias is not one row of {length} {dtype}"
    if aux:
        dtype, packed, multiple = ("uint8", 8, 16) if epilogue.has_mask else (dtype, 1, 8)
        columns = -(-out.columns // packed)
        if aux.rows != out.rows or aux.columns < columns or aux.column_stride != 1 or name_of(aux.dtype) != dtype:
            yield f"aux is not a matrix ({out.rows}, {columns}) of {dtype} with rows in one piece"
        if aux.row_stride % multiple or aux.row_stride < columns:
            yield f"the row stride of aux is not a multiple of {multiple} that holds {columns}"


@dataclass(slots=True)
class _Plan:
    """What is kept of a product: its descriptors, and the algorithm."""

    operation: c_void_p
    layouts: tuple[c_void_p, ...]
    one: Any
    beta: Any
    code: Code
    destroy: Callable[[], None]


class CublasLt:
    """The library on one device. Launches that run one after another, on one lane, share a workspace.

    Any thread may call, on whatever device.

    Parameters
    ----------
    workspace : int
        An address, a multiple of 256, of memory that lives as long as this object and the graphs with its launches.
        Each lane has `size` bytes of it, one after another.
    size : int
        Bytes for a lane (`workspace_size`).
    library : optional
        What has the functions, in place of NVIDIA's.
    device : context manager, optional
        Makes the device the current one, which the library expects of every call; none where it is already.

    Raises
    ------
    DeviceError
        The library is not there, is of another CUDA, or finds no GPU.
    """

    def __init__(self, workspace: int, size: int, library: Any = None, device: Any = None) -> None:
        if workspace % 256:
            raise DeviceError(f"cuBLASLt: the workspace lies at {workspace:#x}; a multiple of 256 bytes is expected.")
        self._library = lt.declare(ctypes.CDLL(library_path("cublasLt", "cuBLASLt")) if library is None else library)
        number = self._library.cublasLtGetVersion()
        self.version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
        if number // 10000 not in (12, 13):
            raise DeviceError(
                f"cuBLASLt {self.version} was found; that of CUDA 12 or 13 is expected. "
                "pip install 'fcdense[cuda13]' brings it."
            )
        # Parts of unequal depth may be summed wrongly from 12.6.3 on, until 13.8 (release notes of CUDA 13.4 Update 1).
        self._splits_evenly_only = 120603 <= number < 130800
        self._workspace, self._size = workspace, size
        self._plans: dict[Any, _Plan | str] = {}
        self._device = nullcontext() if device is None else device
        self._lock = threading.Lock()
        self._handle = c_void_p()
        cure = f"It needs an NVIDIA GPU and a driver for CUDA {number // 10000}; nvidia-smi shows both."
        with self._device:
            self._check(self._library.cublasLtCreate(byref(self._handle)), "does not start", cure)

    def close(self) -> None:
        """Destroy all that was made. The library waits for the device."""
        with self._device, self._lock:
            while self._plans:
                self._forget(next(iter(self._plans)))
            self._library.cublasLtDestroy(self._handle)
            self._handle = c_void_p()

    def refusal(self, product: Product) -> str:
        """Why the library does not compute a product; "" if it does, and then it is ready to be run or captured.

        A failure of the library, which may have no memory for its kernels at the moment, is logged as well.
        """
        with self._device, self._lock:
            try:
                plan = self._plan(product)
            except DeviceError as error:
                logger.warning("%s", error)
                return str(error)
            return plan if isinstance(plan, str) else ""

    def run(self, product: Product, stream: int, algorithm: Algorithm | None = None, lane: int = 0) -> None:
        """Launch a product on a stream, by a given algorithm, or that which was chosen, or the library's first.

        Those of one `lane` must not run side by side. The stream may be one that is being captured, if the product is
        known.

        Raises
        ------
        DeviceError
            It is refused or fails. Nothing was launched.
        """
        with self._device, self._lock:
            plan = self._served(product)
            self._point(plan.operation, *[x and x.address for x in (product.bias, product.aux)])
            (a, b, d), out = plan.layouts, product.out.address
            status = self._library.cublasLtMatmul(
                self._handle, plan.operation,
                byref(plan.one), product.b.address, a, product.a.address, b,
                byref(plan.beta), out, d, out, d,
                plan.code if algorithm is None else Code.from_buffer_copy(algorithm.code),
                self._workspace + lane * self._size, self._size, stream,
            )  # fmt: skip
            self._check(status, f"does not compute {product}")

    def algorithms(self, product: Product, count: int) -> list[Algorithm]:
        """Up to `count` algorithms for a product, in the order of the library's guess. Raises as `run` does."""
        with self._device, self._lock:
            plan = self._served(product)
            return self._query(plan.operation, plan.layouts, product, count)

    def choose(self, product: Product, algorithm: Algorithm) -> None:
        """Run a product by this algorithm from now on. Raises as `run` does."""
        with self._device, self._lock:
            self._served(product).code = Code.from_buffer_copy(algorithm.code)

    def _check(self, status: int, what: str, cure: str = "") -> None:
        if status:
            said = self._library.cublasLtGetStatusString(status).decode()
            raise DeviceError(f"cuBLASLt {self.version} {what}: {said} (status {status}). {cure}".rstrip())

    def _served(self, product: Product) -> _Plan:
        plan = self._plan(product)
        if isinstance(plan, str):
            raise DeviceError(f"cuBLASLt {self.version} does not compute {product}: {plan}.")
        return plan

    def _plan(self, product: Product) -> _Plan | str:
        key = product.key()
        plan = self._plans.get(key)
        if plan is None:
            plan = refusal(product) or self._new_plan(product)
            if len(self._plans) >= PLANS:
                self._forget(next(iter(self._plans)))
            self._plans[key] = plan
        return plan

    def _forget(self, key: Any) -> None:
        plan = self._plans.pop(key)
        if not isinstance(plan, str):
            plan.destroy()

    def _new_plan(self, product: Product) -> _Plan | str:
        # The library's matrices lie column by column: in the memory of a matrix that lies row by row it sees the
        # transposed one. So it is asked for outᵀ = bᵀ aᵀ: its A is b and its B is a, transposed where ours is, its D
        # is out; its rows, and the bias for each of them, are our columns. Nothing is moved.
        dtype = name_of(product.a.dtype)
        double = dtype == "float64"
        compute = lt.COMPUTE_64F if double else lt.COMPUTE_32F_FAST_TF32 if product.tf32 else lt.COMPUTE_32F
        scale = ctypes.c_double if double else ctypes.c_float
        with ExitStack() as made:
            operation = self._made(made, "MatmulDesc", compute, lt.CUDA_TYPES["float64" if double else "float32"])
            layouts = tuple(self._layout(made, operand) for operand in (product.b, product.a, product.out))
            self._set("MatmulDesc", operation, lt.TRANSA, product.b.leading()[0])
            self._set("MatmulDesc", operation, lt.TRANSB, product.a.leading()[0])
            self._set("MatmulDesc", operation, lt.EPILOGUE, product.epilogue)
            if product.aux:
                numbers = 8 if product.epilogue.has_mask else 1
                self._set("MatmulDesc", operation, lt.EPILOGUE_AUX_LD, product.aux.row_stride * numbers)
            found = self._query(operation, layouts, product, CANDIDATES)
            if not found:
                return f"there is no algorithm for it on this GPU within {self._size:,} bytes of workspace"
            code = Code.from_buffer_copy(found[0].code)
            return _Plan(operation, layouts, scale(1), scale(product.accumulate), code, made.pop_all().close)

    def _layout(self, made: ExitStack, operand: Operand) -> c_void_p:
        is_transposed, step = operand.leading()
        length, count = (operand.rows, operand.columns) if is_transposed else (operand.columns, operand.rows)
        return self._made(made, "MatrixLayout", lt.CUDA_TYPES[name_of(operand.dtype)], length, count, step)

    def _made(self, made: ExitStack, kind: str, *arguments: int) -> c_void_p:
        descriptor = c_void_p()
        create, destroy = (getattr(self._library, f"cublasLt{kind}{what}") for what in ("Create", "Destroy"))
        self._check(create(byref(descriptor), *arguments), f"makes no {kind}")
        made.callback(destroy, descriptor)
        return descriptor

    def _set(self, kind: str, descriptor: c_void_p, attribute: Attribute, value: int) -> None:
        held = attribute.kind(value)
        function = getattr(self._library, f"cublasLt{kind}SetAttribute")
        status = function(descriptor, attribute.number, byref(held), sizeof(held))
        self._check(status, f"does not set attribute {attribute.number} of a {kind} to {value}")

    def _point(self, operation: c_void_p, bias: int | None, aux: int | None) -> None:
        for attribute, address in ((lt.BIAS_POINTER, bias), (lt.EPILOGUE_AUX_POINTER, aux)):
            if address is not None:
                self._set("MatmulDesc", operation, attribute, address)

    def _query(self, operation: c_void_p, layouts: Any, product: Product, count: int) -> list[Algorithm]:
        # A query takes no more from the two addresses of a descriptor than their alignment (cublasLt.h).
        self._point(operation, *[x and alignment_of(x.address) for x in (product.bias, product.aux)])
        with ExitStack() as made:
            preference = self._made(made, "MatmulPreference")
            self._set("MatmulPreference", preference, lt.MAX_WORKSPACE_BYTES, self._size)
            self._set("MatmulPreference", preference, lt.REDUCTION_SCHEME_MASK, lt.IN_COMPUTE_TYPE)
            for attribute, x in zip(lt.MIN_ALIGNMENTS, (product.b, product.a, product.out, product.out), strict=True):
                self._set("MatmulPreference", preference, attribute, alignment_of(x.address))
            found, returned = (Found * count)(), c_int()
            a_layout, b_layout, d_layout = layouts
            status = self._library.cublasLtMatmulAlgoGetHeuristic(
                self._handle, operation, a_layout, b_layout, d_layout, d_layout,
                preference, count, found, byref(returned),
            )  # fmt: skip
            if status != lt.NOT_SUPPORTED:
                self._check(status, f"names no algorithm for {product}")
        served = [x for x in found[: returned.value] if not x.state and self._is_sound(x.code, product.a.columns)]
        return [Algorithm(bytes(x.code), x.workspace) for x in served]

    def _is_sound(self, code: Code, depth: int) -> bool:
        splits, written = lt.SPLITK_NUM.kind(), c_size_t()
        status = self._library.cublasLtMatmulAlgoConfigGetAttribute(
            code, lt.SPLITK_NUM.number, byref(splits), sizeof(splits), byref(written)
        )
        self._check(status, "does not tell the splits of an algorithm")
        return not (self._splits_evenly_only and splits.value > 1 and depth % splits.value)
