"""What is said to cuBLASLt: a product as this library tells it, and the numbers and prototypes of cublasLt.h.

The numbers are those of cuBLAS 12.9 and 13.10, whose headers agree on them.
"""

from __future__ import annotations

from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from typing import Any, NamedTuple

ALIGNMENT = 16
"""Bytes. cuBLAS is at full speed from here on (its documentation, Tensor Core Usage). More must not count, or the
algorithm, and with it the last bits, would depend on where an array happens to lie."""


class Epilogue(IntEnum):
    """What is done to the sums z of a product before they are stored, and what is read or written beside them.

    Told for matrices that lie row by row. The library sees the transposed product (`cublaslt.py`): what it says of its
    rows holds for columns here, its A is our b, and its B our a. GELU is the one with tanh.
    """

    DEFAULT = 1
    """out = z"""
    RELU = 2
    """out = max(z, 0); NaN becomes 0 (NVIDIA developer forum, 329783)."""
    RELU_AUX = 130
    """And aux = the bits z > 0: column j is bit j % 8 of byte j // 8 of its row."""
    BIAS = 4
    """out = z + bias, one number for each column."""
    RELU_BIAS = 6
    RELU_AUX_BIAS = 134
    DRELU = 136
    """out = z where the bit of aux is set, 0 elsewhere."""
    DRELU_BGRAD = 152
    """And bias = column sums of out."""
    GELU = 32
    """out = gelu(z)"""
    GELU_AUX = 160
    """And aux = z."""
    GELU_BIAS = 36
    GELU_AUX_BIAS = 164
    DGELU = 192
    """out = z * gelu'(aux)"""
    DGELU_BGRAD = 208
    """And bias = column sums of out."""
    COLUMN_SUMS_OF_B = 256
    """out = z, bias = column sums of b. The library's BGRADA."""
    ROW_SUMS_OF_A = 512
    """out = z, bias = row sums of a. The library's BGRADB."""

    @property
    def has_bias(self) -> bool:
        return bool(self & (4 | 16 | 256 | 512))

    @property
    def has_aux(self) -> bool:
        return bool(self & 128)

    @property
    def is_gradient(self) -> bool:
        return bool(self & (8 | 64 | 256 | 512))

    @property
    def has_mask(self) -> bool:
        return self.has_aux and bool(self & (2 | 8))


def name_of(dtype: Any) -> str:
    """The name of a dtype, or of what is one already."""
    return str(getattr(dtype, "name", dtype))


def alignment_of(address: int) -> int:
    """The largest power of two that divides an address, up to `ALIGNMENT`."""
    return (address | ALIGNMENT) & -(address | ALIGNMENT)


class Operand(NamedTuple):
    """A matrix in the memory of the device, with strides in elements. The dtype is NumPy's, or its name."""

    address: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    dtype: Any

    def leading(self) -> tuple[bool, int]:
        """Whether columns lie in one piece instead of rows, and the step from one to the next; 0 if neither do."""
        rows, columns = (self.rows, self.row_stride), (self.columns, self.column_stride)
        for is_transposed, (count, stride), (length, within) in ((False, rows, columns), (True, columns, rows)):
            step = stride if count > 1 else length
            if (within == 1 or length == 1) and step >= length:
                return is_transposed, step
        return False, 0

    def __str__(self) -> str:
        return f"({self.rows}, {self.columns}) {name_of(self.dtype)}"


class Product(NamedTuple):
    """out = epilogue(a @ b), or epilogue(a @ b + out) where it accumulates; float32 inside, float64 for float64.

    Attributes
    ----------
    a, b, out : Operand
        `a` and `b` may be transposed. `out` has their dtype, or float32 if theirs has 16 bits.
    epilogue : Epilogue
        What becomes of the sums, and which of `bias` and `aux` there are.
    bias : Operand, optional
        One row in the dtype of `out`, read or overwritten.
    aux : Operand, optional
        A matrix like `out` whose row stride is a multiple of 8; if it holds bits, uint8 and a multiple of 16.
    accumulate : bool
        Whether what `out` held is added to the sums.
    tf32 : bool
        Whether float32 operands may be rounded to TF32.
    """

    a: Operand
    b: Operand
    out: Operand
    epilogue: Epilogue = Epilogue.DEFAULT
    bias: Operand | None = None
    aux: Operand | None = None
    accumulate: bool = False
    tf32: bool = False

    def key(self) -> tuple[Any, ...]:
        """What tells products apart: everything but the addresses, of which the alignment counts."""
        operands = (self.a, self.b, self.out, self.bias, self.aux)
        told = [x and (alignment_of(x.address), *x[1:]) for x in operands]
        return *told, self.epilogue, self.accumulate, self.tf32

    def __str__(self) -> str:
        return f"out {self.out} = a {self.a} @ b {self.b}, {self.epilogue.name}"


class Attribute(NamedTuple):
    """A setting of a descriptor: its number, and the C type whose size the library checks."""

    number: int
    kind: Any


TRANSA = Attribute(3, c_int)
TRANSB = Attribute(4, c_int)
EPILOGUE = Attribute(7, c_uint32)
BIAS_POINTER = Attribute(8, c_void_p)
EPILOGUE_AUX_POINTER = Attribute(11, c_void_p)
EPILOGUE_AUX_LD = Attribute(12, c_int64)

MAX_WORKSPACE_BYTES = Attribute(1, c_uint64)
MIN_ALIGNMENTS = tuple(Attribute(number, c_uint32) for number in (5, 6, 7, 8))
"""Of A, B, C and D."""
REDUCTION_SCHEME_MASK = Attribute(3, c_uint32)
IN_COMPUTE_TYPE = 2
"""Parts of the depth are kept in the type of the sums until they are added; otherwise in that of the result as well."""

SPLITK_NUM = Attribute(2, c_int)

CUDA_TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
"""`cudaDataType`, by the name of the dtype."""
COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70

NOT_SUPPORTED = 15
"""The `cublasStatus_t` that a query may return."""


class Code(Structure):
    """`cublasLtMatmulAlgo_t`, which nobody looks into."""

    _fields_ = (("data", c_uint64 * 8),)


class Found(Structure):
    """`cublasLtMatmulHeuristicResult_t`."""

    _fields_ = (
        ("code", Code),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


_SET = (c_void_p, c_int, c_void_p, c_size_t)
_OPERATION_AND_LAYOUTS = (c_void_p,) * 5

FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cublasLtGetVersion": (c_size_t,),
    "cublasLtGetStatusString": (c_char_p, c_int),
    "cublasLtCreate": (c_int, POINTER(c_void_p)),
    "cublasLtDestroy": (c_int, c_void_p),
    "cublasLtMatmulDescCreate": (c_int, POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescDestroy": (c_int, c_void_p),
    "cublasLtMatmulDescSetAttribute": (c_int, *_SET),
    "cublasLtMatrixLayoutCreate": (c_int, POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatrixLayoutDestroy": (c_int, c_void_p),
    "cublasLtMatmulPreferenceCreate": (c_int, POINTER(c_void_p)),
    "cublasLtMatmulPreferenceDestroy": (c_int, c_void_p),
    "cublasLtMatmulPreferenceSetAttribute": (c_int, *_SET),
    "cublasLtMatmulAlgoGetHeuristic": (
        c_int, c_void_p, *_OPERATION_AND_LAYOUTS, c_void_p, c_int, POINTER(Found), POINTER(c_int),
    ),
    "cublasLtMatmulAlgoConfigGetAttribute": (c_int, POINTER(Code), c_int, c_void_p, c_size_t, POINTER(c_size_t)),
    "cublasLtMatmul": (
        c_int,
        c_void_p, c_void_p,  # handle, operation
        c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,  # alpha, A and its layout, B and its layout
        c_void_p, c_void_p, c_void_p, c_void_p, c_void_p,  # beta, C and its layout, D and its layout
        POINTER(Code), c_void_p, c_size_t, c_void_p,  # algorithm, workspace and its size, stream
    ),
}  # fmt: skip
"""What each function returns and takes."""


def declare(library: Any) -> Any:
    """The library, with the prototypes of what is called of it."""
    for name, (returned, *taken) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = returned, taken
    return library
