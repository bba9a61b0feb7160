"""The neurons in plain PyTorch, written to be read beside the equations.

This package is the oracle of the project: it shares no code with the compiled kernels, runs in any floating dtype
(float64 for the comparisons) and on any device, and differentiates by ordinary autograd.
"""

from .elementwise import glif, integrate_fire, lif, lmh, plif, tclif
from .stc import stc_lif, stc_lmh, stc_plif
from .surrogate import DEFAULT_ALPHA, fire, primitive

__all__ = [
    "DEFAULT_ALPHA",
    "fire",
    "glif",
    "integrate_fire",
    "lif",
    "lmh",
    "plif",
    "primitive",
    "stc_lif",
    "stc_lmh",
    "stc_plif",
    "tclif",
]
