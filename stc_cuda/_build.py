"""What was compiled."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ._extension import extension


def build_info() -> dict[str, Any]:
    """What this build of the extension holds and what it runs on.

    Keys: ``version`` (of stc_cuda), ``torch`` (built against), ``compiler``, ``cpp_standard``, ``openmp`` (whether the
    kernels use threads), ``cuda`` (version of the toolkit, such as ``"13.0"``, or ``None`` for a build without CUDA
    kernels), ``cuda_skipped`` (why there are none, or ``None``), ``cuda_architectures`` (what the CUDA kernels were
    compiled for, such as ``["sm_90", "compute_120"]``, where ``compute_`` stands for PTX), ``cpu_kernels``
    (instruction sets compiled in) and ``cpu_kernel`` (the one in use here).
    """
    return dict(extension.build_info())


def warn_without_cuda() -> None:
    """Warns where torch has CUDA and this build has none, unless that was asked for."""
    info = build_info()
    asked_for = (info["cuda_skipped"] or "").startswith("STC_CUDA_FORCE_CPU")
    if torch.version.cuda is not None and info["cuda"] is None and not asked_for:
        warnings.warn(
            f"stc_cuda was built without CUDA kernels ({info['cuda_skipped']}), although torch {torch.__version__} has "
            "CUDA. To build them type, in the checkout, "
            "STC_CUDA_FORCE_CUDA=1 pip install --no-build-isolation --force-reinstall --no-deps . "
            "To do without and without this warning, build with STC_CUDA_FORCE_CPU=1",
            RuntimeWarning,
            stacklevel=2,
        )
