"""What a library that compiles a CUDA extension of its own needs of a machine. Runs in a worker."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import Any


def look(extension: str) -> dict[str, Any]:
    """Whether torch finds a GPU, and whether a library's compiled ``extension`` (a module's name)
    is here or can be compiled.
    """
    import torch
    from torch.utils import cpp_extension

    gpu = bool(torch.cuda.is_available())
    home = cpp_extension.CUDA_HOME or cpp_extension.ROCM_HOME
    nvcc = bool(
        home
        and any(
            os.access(os.path.join(str(home), "bin", name), os.X_OK) for name in ("nvcc", "hipcc")
        )
    )
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    cache = os.path.join(
        given or os.path.join(cpp_extension.get_default_build_root(), _build_folder()), extension
    )
    return {
        "gpu": gpu,
        "name": torch.cuda.get_device_name(0) if gpu else "",
        "memory": torch.cuda.get_device_properties(0).total_memory if gpu else 0,
        "capability": list(torch.cuda.get_device_capability(0)) if gpu else [0, 0],
        "hip": bool(getattr(torch.version, "hip", None)),
        "torch": torch.__version__.split("+")[0],
        "cuda": torch.version.cuda or "",
        "python": list(sys.version_info[:2]),
        "extension": importlib.util.find_spec(extension) is not None,
        "compiled": os.path.isfile(os.path.join(cache, f"{extension}.so")),
        "nvcc": nvcc,
        "compiler": bool(shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")),
        "disk": shutil.disk_usage(os.path.expanduser("~")).free,
    }


def _build_folder() -> str:
    """The folder that torch's cpp_extension puts its builds in, by Python and CUDA
    (torch.utils.cpp_extension._get_build_directory).
    """
    import torch

    hip, cuda = getattr(torch.version, "hip", None), torch.version.cuda
    kind = f"rocm{hip.replace('.', '')}" if hip else f"cu{cuda.replace('.', '')}" if cuda else "cpu"
    return f"py{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}_{kind}"
