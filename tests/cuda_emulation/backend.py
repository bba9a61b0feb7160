"""The backend ``"cuda_emulated"``: the project's CUDA kernels on the CPU. Compiled when it is first used.

The operators torch.ops.stc_cuda_emulated.* have the schemas and the fake kernels of torch.ops.stc_cuda.*. They hand
over to stc_cuda_emulated_kernels.*, which come into being when the library is loaded.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import stc_cuda
from stc_cuda import _ops

from . import NAME, build
from .control import Emulation

SOURCES = build.ROOT / "csrc"


def compile_kernels(
    mode: str, sources: Path = SOURCES, name: str = "stc_cuda_emulated", kernels: Sequence[Path] = ()
) -> Path:
    """The library of the operators on ``kernels``, by default all in ``sources``, a csrc folder."""
    from torch.utils.cpp_extension import include_paths, library_paths

    return build.build(
        name,
        kernels=kernels or sorted((sources / "cuda").glob("*.cu")),
        mode=mode,
        flags=["-iquote", str(sources), "-include", str(build.HERE / "workspace_parts.h")],
        host=[SOURCES / "plan.cpp", build.HERE / "operators.cpp"],
        host_flags=[
            "-std=c++20",
            f"-I{SOURCES}",
            f"-I{build.HERE}",
            *(flag for folder in include_paths() for flag in ("-isystem", folder)),
        ],
        link_flags=[
            *(flag for folder in library_paths() for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")),
            *("-ltorch", "-ltorch_cpu", "-lc10"),
        ],
    )


@functools.cache
def load() -> Emulation:
    """The emulated kernels, in the mode named by STC_EMULATION_MODE: plain, asan or check; check if unset.

    STC_EMULATION_LIBRARY, if set, is the path of the library to load instead.
    """
    path = os.environ.get("STC_EMULATION_LIBRARY")
    if not path:
        path = str(compile_kernels(os.environ.get("STC_EMULATION_MODE", "check")))
    torch.ops.load_library(path)
    return Emulation(path)


def _loading(operator: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        load()
        return getattr(torch.ops.stc_cuda_emulated_kernels, operator)(*arguments)

    return run


def _define() -> torch.library.Library:
    library = torch.library.Library("stc_cuda_emulated", "DEF")
    for operator, fake in (
        ("stc_forward", _ops._forward_fake),
        ("stc_backward", _ops._backward_fake),
        ("scan_forward", _ops._scan_forward_fake),
        ("scan_backward", _ops._scan_backward_fake),
        ("scan_backward_in_place", _ops._scan_backward_in_place_fake),
    ):
        schema = str(getattr(torch.ops.stc_cuda, operator).default._schema)
        library.define(schema.removeprefix("stc_cuda::"))
        library.impl(operator, _loading(operator), "CPU")
        torch.library.register_fake(f"stc_cuda_emulated::{operator}", fake, lib=library)
    return library


_LIBRARY = _define()  # the operators live as long as it does
stc_cuda.register_backend(
    stc_cuda.Backend(
        NAME,
        forward=torch.ops.stc_cuda_emulated.stc_forward,
        backward=torch.ops.stc_cuda_emulated.stc_backward,
        scan_forward=torch.ops.stc_cuda_emulated.scan_forward,
        scan_backward=torch.ops.stc_cuda_emulated.scan_backward,
        scan_backward_in_place=torch.ops.stc_cuda_emulated.scan_backward_in_place,
        device_types=frozenset({"cpu"}),
    )
)
