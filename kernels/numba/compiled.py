"""Compiled kernels, and what is kept of them on disk: an object file each, named by a hash of what it was made from.

That is its source, the sources in this package, the versions and the processor. A process that finds all its kernels
there never wakes up Numba's compiler, which takes a quarter of a second by itself.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite
import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from fcdense.kernels import code_cache

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, and nothing can be compiled")

logger = logging.getLogger("fcdense")

PATIENCE = 0.7
"""Seconds of compiling after which the user is told what takes so long, if it goes on."""


NEEDLESS = {
    *("WithLift", "InlineClosureLikes", "RewriteSemanticConstants", "DeadBranchPrune", "GenericRewrites"),
    *("RewriteDynamicRaises", "MakeFunctionToJitFunction", "FindLiterallyCalls", "LiteralUnroll"),
    *("LiteralPropagationSubPipelinePass", "MixedContainerUnroller", "CanonicalizeLoopEntry", "CanonicalizeLoopExit"),
    *("InlineOverloads", "NopythonRewrites", "IRLegalization", "NoPythonSupportedFeatureValidation"),
}
"""Numba's passes for what no kernel has, such as closures, arrays and `with`; a tenth of the time of compiling."""


class Pipeline(compiler.CompilerBase):
    """Numba's compiler without these passes."""

    def define_pipelines(self) -> list[Any]:
        """The passes."""
        passes = compiler.PassManager("kernel")
        usual = compiler.DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [entry for entry in usual.passes if entry[0].__name__ not in NEEDLESS]
        passes.finalize()
        return [passes]


OPTIONS: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class Kernel(NamedTuple):
    """A C function of some int64.

    Attributes
    ----------
    address : int
    was_compiled : bool
        By this process; else it was read.
    keeps : object
        What the machine code lives in.
    """

    address: int
    was_compiled: bool
    keeps: Any


_kernels: dict[str, Kernel] = {}
_lock = threading.RLock()
_seconds = 0.0


def jitted(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiled as part of a kernel, with these options of `numba.njit`: neither Python nor C can call it."""

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher: Any = numba.njit(function, pipeline_class=Pipeline, **options, **OPTIONS)
        fold = dispatcher._compiler.fold_argument_types
        # Literals have the type of all integers: else a function were compiled anew for each one that it is given.
        dispatcher._compiler.fold_argument_types = lambda args, kws: fold(tuple(map(types.unliteral, args)), kws)
        return dispatcher

    return decorate


def call_source(module: str, name: str, dtype: Any = None) -> str:
    """The source of the kernel `name` of `module`, for the dtype that it takes last if any."""
    constants = "" if dtype is None else f"np.{dtype},"
    return f'''"""{name} of {dtype}."""

import numpy as np

from {module} import {name} as kernel

constants = ({constants})
'''


def load(source: str) -> Kernel:
    """The C function that `source` defines, compiled or read from the disk. It stays for the life of the process.

    Parameters
    ----------
    source : str
        A module that defines `kernel`, a jitted function of int64 that cannot raise, and the tuple `constants` with the
        values of its last parameters.

    Notes
    -----
    Kernels are kept in the folder `numba` of $FCDENSE_CACHE, or else of ~/.cache/fcdense. If that cannot be written to,
    a warning says so and each process compiles them.
    """
    with _lock:
        if source not in _kernels:
            name = "fcdense_" + hashlib.sha256(f"{_version()}\n{source}".encode()).hexdigest()[:32]
            path = code_cache.folder_of("numba") / f"{name}.o"
            code = code_cache.read(path)
            _kernels[source] = _compile(source, name, path) if code is None else _link(code, name)
        return _kernels[source]


@functools.cache
def _version() -> str:
    """What machine code depends on besides its source."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.name.startswith("gpu_"):
            sources.update(path.read_bytes())
    versions = numba.__version__, llvmlite.__version__, sys.implementation.cache_tag, sources.hexdigest()
    settings = numba.config.OPT, numba.config.CPU_NAME, numba.config.CPU_FEATURES
    processor = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return " ".join(map(str, (*versions, *settings, *processor)))


def _compile(source: str, name: str, path: Path) -> Kernel:
    global _seconds
    if _seconds > PATIENCE:
        _explain(f"compiling kernels for this processor, once; they are kept in {path.parent}")
        _seconds = -math.inf
    start = time.perf_counter()
    with _no_collections():
        library = library_of(source, name)
    _seconds += time.perf_counter() - start
    code_cache.keep(path, library._get_compiled_object())
    return Kernel(library.get_pointer_to_function(name), True, library)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Leave cyclic garbage for later: looking for it takes a tenth of the time of compiling."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@global_compiler_lock
def library_of(source: str, name: str) -> Any:
    """Numba's library with the C function `name`, which calls the function that `source` defines."""
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(source, name, "exec"), namespace)
    function, constants = namespace["kernel"], namespace["constants"]
    flags = compiler.Flags()
    cpu_target.options.parse_as_flags(flags, function.targetoptions)
    flags.no_compile = True  # more comes into the library
    count = function.py_func.__code__.co_argcount - len(constants)
    args = *[types.int64] * count, *map(numba.typeof, constants)
    contexts = cpu_target.typing_context, cpu_target.target_context
    result = compiler.compile_extra(*contexts, function.py_func, args, None, flags, {}, pipeline_class=Pipeline)
    context, library, description = result.target_context, result.library, result.fndesc
    number = description.restype
    kind = ir.VoidType() if number == types.none else context.get_value_type(number)
    module = library.create_ir_module(name)
    entry = ir.Function(module, ir.FunctionType(kind, [ir.IntType(64)] * count), name)
    builder = ir.IRBuilder(entry.append_basic_block())
    values = *entry.args, *[context.get_dummy_value()] * len(constants)
    callee = context.declare_function(module, description)
    # Numba's own wrapper for C looks at errors, for which machine code would need Python.
    _, value = context.call_conv.call_function(builder, callee, number, description.argtypes, values)
    builder.ret_void() if number == types.none else builder.ret(value)
    library.add_ir_module(module)
    library.get_function(description.llvm_func_name).linkage = "internal"
    library.finalize()
    return library


def _link(code: bytes, name: str) -> Kernel:
    """A kernel from its machine code, with symbols of its own: helpers in two files may share a name."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return Kernel(engine.get_function_address(name), False, engine)


def _explain(message: str) -> None:
    """Tell who waits: the log, or the terminal where nobody reads that."""
    logger.info(message)
    if not logger.isEnabledFor(logging.INFO) and sys.stderr.isatty():
        print(f"fcdense: {message}", file=sys.stderr)
