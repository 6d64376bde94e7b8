"""Kernels compiled by NVRTC for one architecture, and kept on disk. Needs no GPU and no driver: the pip wheels do.

A file is named by the digest of all that it was made from: source and headers, options, architecture, and version of
the compiler. A damaged one is made anew.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fcdense import kernels
from fcdense.cuda.library import library_path
from fcdense.cuda.source import Kernel
from fcdense.errors import DeviceError
from fcdense.kernels import code_cache

OPTIONS = ("-std=c++17", "-default-device", "-lineinfo", "--ptxas-options=-v")


class Image(NamedTuple):
    """What the compiler made of a kernel: the code for a chip, and what it said."""

    code: bytes
    log: str


@cache
def headers() -> dict[str, bytes]:
    """The files of `kernels/cuda` by the names with which they are included."""
    folder = Path(kernels.__file__).parent / "cuda"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.cuh"))}


class Nvrtc:
    """NVIDIA's runtime compiler, through its C interface (CUDA Toolkit Documentation, NVRTC)."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(library_path("nvrtc", "NVRTC"))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, text: str, architecture: str, name: str) -> Image:
        """The code of a translation unit for "sm_90a" and the like.

        Raises
        ------
        DeviceError
            It does not compile; the message has the compiler's.
        """
        files = headers()
        program = ctypes.c_void_p()
        contents, names = (ctypes.c_char_p * len(files))(*files.values()), (ctypes.c_char_p * len(files))()
        names[:] = [header.encode() for header in files]
        created = self._library.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), b"kernel.cu", len(files), contents, names
        )
        self._check(created)
        try:
            options = [option.encode() for option in (*OPTIONS, f"-arch={architecture}")]
            status = self._library.nvrtcCompileProgram(
                program, len(options), (ctypes.c_char_p * len(options))(*options)
            )
            log = self._bytes(program, "ProgramLog").decode(errors="replace")
            if status:
                raise DeviceError(f"NVRTC {self.version} does not compile {name} for {architecture}:\n{log}")
            return Image(self._bytes(program, "CUBIN"), log)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw if what == "CUBIN" else buffer.value

    def _check(self, status: int) -> None:
        if status:
            raise DeviceError(f"NVRTC: {self._library.nvrtcGetErrorString(status).decode()}.")


@cache
def nvrtc() -> Nvrtc:
    """The compiler, loaded once."""
    return Nvrtc()


def image(kernel: Kernel, architecture: str) -> Image:
    """What the compiler makes of a kernel."""
    return nvrtc().compile(kernel.text, architecture, kernel.name)


def code(kernel: Kernel, architecture: str) -> bytes:
    """The code of a kernel, from disk or from the compiler."""
    compiler = nvrtc()
    parts = [kernel.text.encode(), *headers().values(), *(o.encode() for o in OPTIONS), architecture.encode()]
    name = hashlib.sha256(b"\0".join([*parts, compiler.version.encode()])).hexdigest()[:40]
    path = code_cache.folder_of("cuda") / f"{name}.cubin"
    found = code_cache.read(path)
    if found is None:
        found = image(kernel, architecture).code
        code_cache.keep(path, found)
    return found
