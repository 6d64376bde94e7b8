"""Where NVIDIA's libraries lie."""

from __future__ import annotations

from typing import Any

from fcdense.errors import DeviceError


def library_path(name: str, title: str) -> str:
    """The file of "nvrtc" or "cublasLt", whether it came with pip, conda or a toolkit.

    Raises
    ------
    DeviceError
        It is not there; the message calls it by its title and has the cure.
    """
    cure = "pip install 'fcdense[cuda13]' (or cuda12, as nvidia-smi names) brings it."
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError:
        raise DeviceError(f"cuda-pathfinder, which finds {title}, is not installed. {cure}") from None
    try:
        path: Any = load_nvidia_dynamic_lib(name).abs_path
    except Exception as error:
        raise DeviceError(f"{title} is not there: {error}. {cure}") from None
    return str(path)
