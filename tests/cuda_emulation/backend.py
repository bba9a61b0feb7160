"""The backend ``"cuda_emulated"``: the project's CUDA kernels on the CPU. Compiled when it is first used."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import include_paths, library_paths

import stc_cuda

from . import build
from .control import Emulation

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def load() -> Emulation:
    """The emulated operators, in the mode named by STC_EMULATION_MODE (plain, asan or check; plain if unset)."""
    mode = os.environ.get("STC_EMULATION_MODE", "plain")
    path = build.build(
        "stc_cuda_emulated",
        kernels=sorted((ROOT / "csrc" / "cuda").glob("*.cu")),
        mode=mode,
        host=[ROOT / "csrc" / "plan.cpp", build.HERE / "operators.cpp"],
        host_flags=[
            "-std=c++20",
            f"-I{ROOT / 'csrc'}",
            f"-I{build.HERE}",
            *(flag for folder in include_paths() for flag in ("-isystem", folder)),
        ],
        link_flags=[
            *(flag for folder in library_paths() for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")),
            *("-ltorch", "-ltorch_cpu", "-lc10"),
        ],
    )
    torch.ops.load_library(path)
    return Emulation(path)


def _forward(*arguments: Any) -> Any:
    load()
    return torch.ops.stc_cuda_emulated.stc_forward(*arguments)


def _backward(*arguments: Any) -> Any:
    load()
    return torch.ops.stc_cuda_emulated.stc_backward(*arguments)


def register() -> None:
    """Makes ``backend="cuda_emulated"`` known to stc_cuda; compiles nothing."""
    if "cuda_emulated" not in stc_cuda.backend_names():
        stc_cuda.register_backend(stc_cuda.Backend("cuda_emulated", _forward, _backward, frozenset({"cpu"})))
