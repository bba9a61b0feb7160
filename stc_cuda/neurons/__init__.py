"""Spiking neurons as modules."""

from .stclif import STCLIF

__all__ = ["STCLIF"]
