"""What was compiled."""

from __future__ import annotations

from typing import Any

from ._extension import extension


def build_info() -> dict[str, Any]:
    """What this build of the extension holds and what it runs on.

    Keys: ``version`` (of stc_cuda), ``torch`` (built against), ``compiler``, ``cpp_standard``, ``openmp`` (whether the
    kernels use threads), ``cuda`` (toolkit version, or ``None`` for a build without CUDA kernels),
    ``cuda_architectures``, ``cpu_kernels`` (instruction sets compiled in) and ``cpu_kernel`` (the one in use here).
    """
    return dict(extension.build_info())
