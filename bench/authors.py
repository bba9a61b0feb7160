"""STC-LIF as the authors of the paper compute it: modules of PyTorch, one time step after another.

Written from the equations of python_ref/stc.py in the way of their code: a grouped convolution and a GroupNorm as
modules for each pathway, another GroupNorm for the current, gates by tanh, and the spike as an autograd.Function. Some
14 kernels a step on a GPU, and 43 bytes kept for backward per neuron and step. A rival of the bench, not an oracle.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

Norm = tuple[Tensor, Tensor]
ALPHA = 4.0  # steepness of the sigmoid


class Spike(torch.autograd.Function):
    """A step, with the slope of a sigmoid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        p = torch.sigmoid(ALPHA * x)
        return grad * p * (1 - p) * ALPHA


class Cell(nn.Module):
    """One step of STC-LIF."""

    def __init__(self, channels: int, groups: int, kernel: int) -> None:
        super().__init__()
        # The parameters come with each call, so that all contestants share them.
        with torch.device("meta"):
            self.conv_temporal, self.conv_spatial = (
                nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=groups, bias=False) for _ in range(2)
            )
            self.norm_current, self.norm_temporal, self.norm_spatial = (
                nn.GroupNorm(groups, channels) for _ in range(3)
            )
        for module in self.children():
            for name in list(module._parameters):
                if module._parameters[name] is not None:
                    delattr(module, name)

    def give(self, temporal_weight: Tensor, spatial_weight: Tensor, **norms: Norm) -> None:
        self.conv_temporal.weight = temporal_weight
        self.conv_spatial.weight = spatial_weight
        for name in ("current", "temporal", "spatial"):
            norm = getattr(self, f"norm_{name}")
            norm.weight, norm.bias = norms[f"{name}_norm"]

    def forward(self, x: Tensor, v: Tensor, s: Tensor, detach: bool) -> tuple[Tensor, Tensor]:
        s = s.detach() if detach else s
        temporal = torch.tanh(self.norm_temporal(self.conv_temporal(s)))
        spatial = torch.tanh(self.norm_spatial(self.conv_spatial(s)))
        u = (1 + temporal) * v + (1 + spatial) * self.norm_current(x)
        spikes = Spike.apply(u - 1.0)
        return u - spikes, spikes


_cell = functools.cache(Cell)


def stc_lif(
    current: Tensor,
    temporal_weight: Tensor,
    spatial_weight: Tensor,
    *,
    groups: int,
    current_norm: Norm,
    temporal_norm: Norm,
    spatial_norm: Norm,
    v: Tensor | None = None,
    spikes: Tensor | None = None,
    gradient_detach: bool = False,
) -> tuple[Tensor, Tensor]:
    """``(spikes, v)`` of :func:`stc_cuda.stc_lif` with its defaults; shapes are the same."""
    cell = _cell(current.shape[2], groups, temporal_weight.shape[-1])
    norms = {"current_norm": current_norm, "temporal_norm": temporal_norm, "spatial_norm": spatial_norm}
    cell.give(temporal_weight, spatial_weight, **norms)
    v = torch.zeros_like(current[0]) if v is None else v
    s = torch.zeros_like(current[0]) if spikes is None else spikes
    sequence = []
    for t in range(current.shape[0]):
        v, s = cell(current[t], v, s, gradient_detach)
        sequence.append(s)
    return torch.stack(sequence), v
