"""stc-cuda: fused kernels for the Spatio-Temporal Circuit spiking neuron, as a PyTorch extension."""

from __future__ import annotations

# isort: off
from . import _ops as _ops  # registers the compiled backends
from . import data, metrics, models, profiling
from . import reference  # type: ignore[attr-defined]  # python_ref/ in the checkout
# isort: on

from ._build import build_info, warn_without_cuda
from ._plan import KernelPlan, kernel_plan
from ._version import __version__
from .backends import Backend, backend_names, register_backend
from .config import STCConfig
from .function import STCFunction
from .functional import stc_lif, unpack_spikes
from .neurons import STCLIF
from .surrogate import Surrogate

warn_without_cuda()

__all__ = [
    "STCLIF",
    "Backend",
    "KernelPlan",
    "STCConfig",
    "STCFunction",
    "Surrogate",
    "__version__",
    "backend_names",
    "build_info",
    "data",
    "kernel_plan",
    "metrics",
    "models",
    "profiling",
    "reference",
    "register_backend",
    "stc_lif",
    "unpack_spikes",
]
