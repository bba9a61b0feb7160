"""Spiking neurons as modules."""

from .circuits import STCLIF, STCLMH, STCPLIF
from .elementwise import GLIF, LIF, LMH, PLIF, TCLIF
from .layer import CircuitLayer, ElementwiseLayer, NeuronLayer

#: The layers by the names of their cells.
NEURONS: dict[str, type[NeuronLayer]] = {
    layer.cell.name: layer for layer in (LIF, PLIF, GLIF, TCLIF, LMH, STCLIF, STCPLIF, STCLMH)
}

__all__ = [
    "GLIF",
    "LIF",
    "LMH",
    "NEURONS",
    "PLIF",
    "STCLIF",
    "STCLMH",
    "STCPLIF",
    "TCLIF",
    "CircuitLayer",
    "ElementwiseLayer",
    "NeuronLayer",
]
