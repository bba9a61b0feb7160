"""STC neurons in plain PyTorch, written to be read beside the equations.

This package is the oracle of the project: it shares no code with the compiled kernels, runs in any floating dtype
(float64 for the comparisons) and on any device, and differentiates by ordinary autograd.
"""

from .stc import stc_lif
from .surrogate import DEFAULT_ALPHA, fire, primitive

__all__ = ["DEFAULT_ALPHA", "fire", "primitive", "stc_lif"]
