"""cuBLASLt as fcdense calls it: the product with the first algorithm that the library names, and what a layer does to
the sums in a pass of its own."""

from __future__ import annotations

from fcdense.backends import device
from fcdense.backends.cuda import CudaBackend
from fcdense.cuda.cublaslt import CublasLt
from fcdense.errors import DeviceError

from ..cases import Arrays, Case, Run
from ..families import by_family
from ..questions.products import Product

DEVICE = device("cuda")


def library() -> CublasLt:
    """cuBLASLt on the first GPU."""
    backend = DEVICE.backend
    assert isinstance(backend, CudaBackend), DEVICE
    if backend.driver.library is None:
        raise DeviceError(f"{DEVICE} works without cuBLASLt: {backend.driver.no_library}")
    return backend.driver.library


VERSIONS = {"cublaslt": library().version}
KINDS = (Product,)


def prepare(case: Case, data: Arrays) -> Run | None:
    """Products."""
    return by_family(DEVICE, "cuBLASLt", case, data)
