"""What was compiled."""

from __future__ import annotations

from typing import Any

from . import _C


def build_info() -> dict[str, Any]:
    """What this build of the extension holds and what it runs on.

    Keys: ``version`` (of stc_cuda), ``torch`` (built against), ``compiler``, ``cpp_standard``, ``cuda`` (toolkit
    version, or ``None`` for a build without CUDA kernels), ``cuda_architectures``, ``cpu_kernels`` (instruction sets
    compiled in) and ``cpu_kernel`` (the one in use on this machine).
    """
    return dict(_C.build_info())
