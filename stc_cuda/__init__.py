"""stc-cuda: fused kernels for the Spatio-Temporal Circuit spiking neuron, as a PyTorch extension."""

from __future__ import annotations

# isort: off
from . import _ops as _ops  # registers the compiled backends
from . import reference  # type: ignore[attr-defined]  # python_ref/ in the checkout
from . import data, memory, metrics, models, profiling
# isort: on

from ._build import build_info, warn_without_cuda
from ._plan import KernelPlan, kernel_plan
from ._version import __version__
from .backends import Backend, backend_names, register_backend
from .config import STCConfig
from .function import STCFunction
from .functional import (
    glif,
    integrate_fire,
    lif,
    lmh,
    plif,
    scan,
    stc_lif,
    stc_lmh,
    stc_plif,
    tclif,
    unpack_spikes,
)
from .neurons import GLIF, LIF, LMH, PLIF, STCLIF, STCLMH, STCPLIF, TCLIF
from .spike_conv import SpikeConv2d, spike_conv2d
from .surrogate import Surrogate

warn_without_cuda()

__all__ = [
    "GLIF",
    "LIF",
    "LMH",
    "PLIF",
    "STCLIF",
    "STCLMH",
    "STCPLIF",
    "TCLIF",
    "Backend",
    "KernelPlan",
    "STCConfig",
    "STCFunction",
    "SpikeConv2d",
    "Surrogate",
    "__version__",
    "backend_names",
    "build_info",
    "data",
    "glif",
    "integrate_fire",
    "kernel_plan",
    "lif",
    "lmh",
    "memory",
    "metrics",
    "models",
    "plif",
    "profiling",
    "reference",
    "register_backend",
    "scan",
    "spike_conv2d",
    "stc_lif",
    "stc_lmh",
    "stc_plif",
    "tclif",
    "unpack_spikes",
]
