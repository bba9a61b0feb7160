"""Functional forms of the neurons."""

from .._bits import unpack_spikes
from .circuit import stc_lif, stc_lmh, stc_plif
from .elementwise import glif, integrate_fire, lif, lmh, plif, scan, tclif

__all__ = [
    "glif",
    "integrate_fire",
    "lif",
    "lmh",
    "plif",
    "scan",
    "stc_lif",
    "stc_lmh",
    "stc_plif",
    "tclif",
    "unpack_spikes",
]
